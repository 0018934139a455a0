"""Model folders and training states: what is saved comes back, what is damaged is named, and a save that fails leaves nothing behind."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentworks.checkpoints import native
from latentworks.checkpoints.native import load_folder, load_newest_state, save_folder, save_state
from latentworks.checkpoints.resolve import resolve_model
from latentworks.checkpoints.start import start_from
from latentworks.conditioners.base import Conditioner
from latentworks.model import LatentDiffusion
from latentworks.pipeline import load, load_model
from latentworks.types import Cond, Gives
from latentworks.unet import UNet
from toys import ALIGNED, ae, diffusion_model, first_stage_folder, ldm


@pytest.fixture
def folder(tmp_path):
    model, recipe = diffusion_model()
    save_folder(tmp_path / "model", model, recipe, "# A card é")
    return tmp_path / "model"


def test_a_model_folder_comes_back_as_it_was(folder):
    model, recipe = diffusion_model()
    again, recipe_again = load_folder(folder)
    assert recipe_again == recipe
    assert not again.training
    ours, theirs = model.state_dict(), again.state_dict()
    assert [key for key in ours | theirs if not torch.equal(ours[key], theirs[key])] == []
    assert again.conditioners[0].tokenize(["red blocks"]).equal(model.conditioners[0].tokenize(["red blocks"]))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "conditioners", "model.safetensors", "recipe.json"]
    assert (folder / "README.md").read_text(encoding="utf-8") == "# A card é"
    (folder / ".DS_Store").write_bytes(b"\x80")
    (folder / "conditioners" / ".DS_Store").write_bytes(b"\x80")
    (folder / "conditioners" / "0" / ".DS_Store").write_bytes(b"\x80")
    load_folder(folder)


@pytest.mark.parametrize(
    "conditioner",
    [
        "{kind: layout, classes: 3, width: 16, layers: 1, length: 8, vocabulary: 99, names: [a, b, c], attributes: [group]}",
        "{kind: layout, classes: 3, width: 16, layers: 1, length: 8, vocabulary: 99, painted: 2}",
        "{kind: text, width: 16, layers: 1, length: 8, vocabulary: 300, neighbours: 2, vector: 64}",
        "{kind: segmentation, classes: 3}",
        "{kind: low_res}",
        "{kind: masked_image, channels: 2, convention: sd}",
    ],
)
def test_every_conditioner_comes_back(tmp_path, conditioner):
    model, recipe = diffusion_model(f"conditioners=[{conditioner}]", "unet.attention_order=qkv", name="unconditional-64")
    save_folder(tmp_path, model, recipe)
    again, recipe_again = load_folder(tmp_path)
    assert recipe_again == recipe
    assert again.conditioners[0].config == model.conditioners[0].config
    ours, theirs = model.state_dict(), again.state_dict()
    assert [key for key in ours | theirs if not torch.equal(ours[key], theirs[key])] == []


def test_half_precision_halves_the_weights_but_not_the_statistics(folder):
    model, recipe = load_folder(folder)
    model.first_stage.set_statistics(torch.tensor([0.1, 0.2]), torch.tensor(1 / 3))
    large = (folder / "model.safetensors").stat().st_size
    save_folder(folder, model, recipe, dtype=torch.float16)
    assert (folder / "model.safetensors").stat().st_size < 0.6 * large
    again, _ = load_folder(folder)
    assert torch.equal(again.first_stage.std, torch.tensor(1 / 3))
    weight = next(again.unet.parameters())
    assert weight.dtype == torch.float32
    assert torch.equal(weight, next(model.unet.parameters()).half().float())


def test_tied_weights_can_be_saved(tmp_path):
    weight = torch.randn(3, 2)
    save_state(tmp_path, 1, {"a": weight, "b": weight, "c": weight[1:]})
    tensors, _ = load_newest_state(tmp_path)
    assert torch.equal(tensors["a"], weight)
    assert torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["c"], weight[1:])


DAMAGE = {
    "weights cut short": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]), "cannot be read"),
    "weights not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors cannot be read"),
    "weights of another": (lambda f: save_file({"x": torch.ones(1)}, f / "model.safetensors"), "weights and recipe.json do not belong"),
    "recipe cut short": (lambda f: (f / "recipe.json").write_text("{"), "cannot read"),
    "recipe of something": (lambda f: (f / "recipe.json").write_text("{}"), "recipe kind 'None'"),
    "tokenizer cut short": (lambda f: (f / "conditioners" / "0" / "tokenizer.json").write_text('{"a"'), "tokenizer.json cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "is no model folder"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_folder_is_named(folder, damage):
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_folder(folder)
    assert str(folder) in str(error.value)


def test_a_save_that_fails_leaves_the_folder_as_it_was(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    model, recipe = load_folder(folder)

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(recipe), "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, model, recipe)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_states_keep_the_newest_two_and_what_fails_is_not_one(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"x": torch.full((2,), float(step))})
    states = tmp_path / "checkpoints"
    assert sorted(path.name for path in states.iterdir()) == ["step-000000002", "step-000000003"]

    def stop(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "_digest", stop)  # the weights are written, the manifest is not
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 4, {"x": torch.ones(2)})
    monkeypatch.undo()
    assert sorted(path.name for path in states.iterdir()) == ["step-000000002", "step-000000003"]
    tensors, complaints = load_newest_state(tmp_path)
    assert (float(tensors["x"][0]), complaints) == (3.0, [])


def test_what_a_killed_save_left_is_no_state_and_goes_with_the_next(tmp_path):
    save_state(tmp_path, 1, {"x": torch.ones(2)})
    left = tmp_path / "checkpoints" / ".step-000000002.123.staged"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    assert load_newest_state(tmp_path)[1] == []
    save_state(tmp_path, 3, {"x": torch.ones(2)})
    assert sorted(path.name for path in left.parent.iterdir()) == ["step-000000001", "step-000000003"]


def test_later_states_of_a_run_that_was_given_up_go(tmp_path):
    for step in (2, 8, 9):
        save_state(tmp_path, step, {"x": torch.ones(2)})
    save_state(tmp_path, 3, {"x": torch.zeros(2)})
    tensors, _ = load_newest_state(tmp_path)
    assert float(tensors["x"][0]) == 0


def test_flipped_bits_are_noticed(tmp_path):
    for step in (1, 2):
        save_state(tmp_path, step, {"x": torch.full((99,), float(step))})
    file = tmp_path / "checkpoints" / "step-000000002" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    tensors, complaints = load_newest_state(tmp_path)
    assert float(tensors["x"][0]) == 1
    assert complaints == ["step-000000002 is damaged and removed, going back to the save before it"]


def test_models_are_found_by_what_a_person_types(folder, tmp_path):
    run = tmp_path / "run"
    save_folder(run / "model", *load_folder(folder))
    assert resolve_model(run) == run / "model"
    assert resolve_model(str(folder)) == folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no model: a model folder has recipe"):
        resolve_model(tmp_path / "empty")
    with pytest.raises(ValueError, match="no model 'opnmoji-64': no such folder"):
        resolve_model("opnmoji-64")
    assert len(load(run)("red", steps=1)) == 1
    first_stage_folder(tmp_path / "stage")
    with pytest.raises(ValueError, match=r"is a first stage .*: it cannot be sampled; name a latent diffusion model"):
        load_model(tmp_path / "stage")


class Extra(Conditioner):
    """One more input channel."""

    field = "mask"

    def __init__(self):
        super().__init__()
        self.gives, self.dropout = Gives(concat=1), 0.0
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch, encode):
        return Cond(concat=batch["mask"] * self.scale)

    def drop(self, batch, where):
        return batch


def test_new_input_channels_start_at_zero():
    old, recipe = diffusion_model(name="unconditional-64")
    torch.manual_seed(1)
    new = LatentDiffusion(old.first_stage, UNet(recipe.unet, 2, Gives(concat=1)), old.process, [Extra()]).eval()
    assert start_from(new, old, recipe) == ["conditioners.0 is new and starts at random", "1 new input channels start at zero"]
    assert torch.equal(new.unet.conv_in.weight[:, :2], old.unet.conv_in.weight)
    assert not new.unet.conv_in.weight[:, 2:].any()
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(new(x, t, {"mask": torch.randn(2, 1, 8, 8)}), old(x, t, {}))
    with pytest.raises(ValueError, match=r"unet.conv_in.weight 16x3x3x3 instead of 16x2x3x3"):
        start_from(old, new, recipe)


def test_a_model_of_captions_starts_from_one_of_classes():
    new, _ = diffusion_model()
    old, recipe = diffusion_model(f"conditioners.0.width={new.unet.gives.context}", name="class-64")
    before = {key: value.clone() for key, value in new.conditioners.state_dict().items()}
    assert start_from(new, old, recipe) == ["conditioners.0 is new and starts at random", "conditioners.0 is left out"]
    assert all(torch.equal(value, before[key]) for key, value in new.conditioners.state_dict().items())
    assert all(torch.equal(value, old.unet.state_dict()[key]) for key, value in new.unet.state_dict().items())


def test_a_model_whose_text_is_aligned_starts_from_one_whose_text_is_not():
    new, _ = diffusion_model(*ALIGNED)
    old, recipe = diffusion_model("conditioners.0.vector=64")
    assert start_from(new, old, recipe) == ["conditioners.0 is new and starts at random", "conditioners.0 is left out"]
    assert all(torch.equal(value, old.unet.state_dict()[key]) for key, value in new.unet.state_dict().items())


def test_every_other_mismatch_is_named_before_anything_is_copied():
    model, recipe = diffusion_model()
    for overrides, message in (
        (
            ["unet.channels=32", "unet.head_channels=32"],
            r"unet.time_embed.0.weight 64x16 instead of 128x32; .* and \d+ more; use the settings",
        ),
        (["unet.multipliers=[1, 2, 2]"], r"unet.decoder.*resnet.* instead of .* and \d+ more; use the"),
        (["unet.depth=2"], r"unet.encoder.2.attention.blocks.1.* is missing in it; "),
        (["conditioners.0.layers=2"], r"conditioners.0.transformer.layers.2.* is missing in it; "),
    ):
        other, _ = diffusion_model(*overrides)
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=message) as error:
            start_from(other, model, recipe)
        assert "\n" not in str(error.value)
        assert [key for key, value in other.state_dict().items() if not torch.equal(value, before[key])] == []
        with pytest.raises(ValueError, match=r"has no place here|instead of"):
            start_from(model, other, recipe)
    with pytest.raises(ValueError, match="--from: openmoji-64-ae is a first_stage model, but another kind is to be trained"):
        start_from(model, model.first_stage, ae())
    assert start_from(model.first_stage, model, recipe) == [], "its own first stage is there"
    assert ldm().name == recipe.name
    assert ae().kind == "first_stage"
