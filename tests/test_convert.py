"""`lw convert`: every layout in and out, what is left out is said, mistakes are one line and leave nothing behind."""

import shutil

import pytest
import torch
import yaml

from latentworks.checkpoints.compvis import load_compvis, load_compvis_first_stage, read_compvis
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.checkpoints.compvis_save import save_compvis
from latentworks.checkpoints.imported import recipe_of
from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.pipeline import load_model
from toys import diffusion_model, first_stage_folder, lw

MODELS = (
    "uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8", "layout-crossattn-vq-f4", "semantic-concat-vq-f4",
    "superres-concat-vq-f4", "inpaint-concat-vq-f4",
)  # fmt: skip


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_out_and_in_again(golden, tmp_path, name, suffix):
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml")
    notes = save_compvis(model, tmp_path / f"model.{suffix}", 32)
    assert notes == []
    again = read_compvis(tmp_path / f"model.{suffix}")
    assert same(model, again.model)
    assert again.size == 32
    assert recipe_of(again.model, "x", 32) == recipe_of(model, "x", 32)
    state = torch.load(golden / name / "model.ckpt", weights_only=True)["state_dict"]
    if suffix == "ckpt":  # the schedule's buffers too are the authors'
        written = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
        buffers = [key for key in state if "." not in key]
        assert len(buffers) == 12
        for key in buffers:
            torch.testing.assert_close(written[key], state[key], rtol=1e-5, atol=1e-7)


def test_means_of_latents_are_folded_into_the_weights(tmp_path):
    model, _ = diffusion_model(statistics=(0.4, 0.3))
    notes = save_compvis(model, tmp_path / "model.ckpt", 16)
    assert any("groups: 8 is an option their code does not have" in note for note in notes)
    again = load_compvis(tmp_path / "model.ckpt")
    assert not again.first_stage.mean.any()
    image, x, t = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 2, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(again.encode(image), model.encode(image), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.first_stage.decode(x), model.first_stage.decode(x), rtol=1e-5, atol=1e-5)
        conds = [m.condition({"text": ["red blocks", ""]}) for m in (model, again)]
        torch.testing.assert_close(again.predict(x, t, conds[1]), model.predict(x, t, conds[0]), rtol=1e-5, atol=1e-5)


def test_without_a_yaml_what_weights_show_is_inferred_and_the_rest_is_asked_for(golden):
    for name in MODELS:
        file, params = golden / name / "model.ckpt", yaml.safe_load((golden / name / "config.yaml").read_text())["model"]["params"]
        net = params["unet_config"]["params"]
        answers = {key: net[key] for key in ("num_heads", "num_head_channels") if key in net}
        answers |= {"parameterization": "eps", "scale_factor": params.get("scale_factor", 1.0), "use_new_attention_order": False}
        answers["cond_stage_key"] = params["cond_stage_key"]
        want, got = load_compvis(file, golden / name / "config.yaml"), load_compvis(file, settings=answers)
        assert same(want, got), name
        assert recipe_of(want, "x", 32) == recipe_of(got, "x", 32), name
        with pytest.raises(ValueError, match=r"without the YAML .*: num_heads \(.*parameterization.*--set num_heads=") as error:
            load_compvis(file)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown setting 'heads': allowed: num_heads"):
        load_compvis(file, settings={"heads": 8, **answers})


def test_weights_that_are_arranged_otherwise_are_named_in_one_line(golden, tmp_path):
    state = torch.load(golden / "uncond-vq-f4" / "model.ckpt", weights_only=True)["state_dict"]
    for part in ("first_stage_model.post_quant_conv", "model.diffusion_model.out.2", "first_stage_model.encoder.down.1.block"):
        torch.save({key: value for key, value in state.items() if not key.startswith(part)}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=r"not arranged as a UNet's or a first stage's .*: give their YAML"):
            load_compvis(tmp_path / "a.ckpt")
    torch.save({"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"it is missing; give the authors' config\.yaml"):
        load_compvis_first_stage(tmp_path / "b.ckpt")


def test_a_first_stage_without_a_yaml(golden, tmp_path):
    for name in ("uncond-vq-f4", "text-crossattn-kl-f8", "inpaint-concat-vq-f4"):
        whole = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml").first_stage
        save_compvis(whole, tmp_path / f"{name}.ckpt", 32)
        (tmp_path / f"{name}.yaml").unlink()
        alone = load_compvis_first_stage(tmp_path / f"{name}.ckpt")
        assert {**alone.config.model_dump(), "dropout": 0.0} == whole.config.model_dump()
        keys = authors_keys(alone)
        assert all(torch.equal(alone.state_dict()[key], whole.state_dict()[key]) for key in keys)


def test_from_the_authors_file_to_images(monkeypatch, capsys, golden, tmp_path):
    folder, out = golden / "uncond-vq-f4", tmp_path / "model"
    code, said, notes = lw(monkeypatch, capsys, "convert", folder / "model.ckpt", out, "--config", folder / "config.yaml")
    assert (code, said) == (0, f"{out}: model, 1.6 M parameters, 32 px\n")
    assert notes == "note: left out: 184 raw weights of the UNet, as the file has averaged ones (ema=False or --raw takes the raw ones)\n"
    assert same(load_model(out), load_compvis(folder / "model.ckpt", folder / "config.yaml"))
    assert lw(monkeypatch, capsys, "sample", out, "--steps", 2, "--out", tmp_path / "images")[0] == 0
    raw = tmp_path / "raw"
    code, _, notes = lw(monkeypatch, capsys, "convert", folder / "model.ckpt", raw, "--config", folder / "config.yaml", "--raw")
    assert (code, "184 averaged weights" in notes) == (0, True)
    assert same(load_model(raw), load_compvis(folder / "model.ckpt", folder / "config.yaml", ema=False))


def test_a_text_model_and_its_vocabulary_there_and_back(monkeypatch, capsys, tmp_path):
    model, recipe = diffusion_model(statistics=(0.0, 0.3))
    save_folder(tmp_path / "ours", model, recipe)
    code, _, notes = lw(monkeypatch, capsys, "convert", tmp_path / "ours", tmp_path / "theirs.safetensors", "--to", "compvis")
    assert (code, "theirs.tokenizer.json holds the vocabulary" in notes) == (0, True)
    assert lw(monkeypatch, capsys, "convert", tmp_path / "theirs.safetensors", tmp_path / "again")[0] == 0
    assert same(load_model(tmp_path / "again"), model)
    code, _, _ = lw(monkeypatch, capsys, "sample", tmp_path / "again", "red blocks", "--steps", 2, "--out", tmp_path / "images")
    assert code == 0


def test_a_first_stage_there_and_back(monkeypatch, capsys, tmp_path):
    folder = first_stage_folder(tmp_path / "ae")
    assert lw(monkeypatch, capsys, "convert", folder, tmp_path / "ae.ckpt", "--to", "compvis")[0] == 0
    assert lw(monkeypatch, capsys, "convert", tmp_path / "ae.ckpt", tmp_path / "again")[0] == 0
    again, _ = load_folder(tmp_path / "again")
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_raw(image), load_folder(folder)[0].encode_raw(image))


def test_diffusers_in_between(monkeypatch, capsys, golden, tmp_path):
    folder = golden / "uncond-vq-f4"
    config = ("--config", folder / "config.yaml")
    code, _, err = lw(monkeypatch, capsys, "convert", folder / "model.ckpt", tmp_path / "theirs", "--to", "diffusers", *config)
    assert code == 0, err
    assert lw(monkeypatch, capsys, "convert", tmp_path / "theirs", tmp_path / "ours")[0] == 0
    model, want = load_model(tmp_path / "ours"), load_compvis(folder / "model.ckpt", folder / "config.yaml")
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(model.predict(x, t, model.condition({})), want.predict(x, t, want.condition({})), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "OUT"], "without the YAML these are not known"),
        (["FILE", "OUT", "--config", "missing.yaml"], "cannot read missing.yaml"),
        (["FILE", "OUT", "--config", "YAML", "--to", "onnx"], "layout: 'onnx' is unknown"),
        (["FILE", "OUT", "--config", "YAML", "--to", "compvis"], "must end in .ckpt or .safetensors"),
        (["FILE", "OUT", "--set", "num_heads"], "write a setting as key=value"),
        (["missing", "OUT"], "no model 'missing'"),
        (["MODEL", "OUT", "--raw"], "--raw: it is about the authors' checkpoint files"),
        (["owner/name", "OUT", "--offline"], "owner/name"),
        (["FILE", "TAKEN", "--config", "YAML"], "is there already"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(monkeypatch, capsys, golden, tmp_path, arguments, message):
    shutil.copy(golden / "uncond-vq-f4" / "model.ckpt", tmp_path / "model.ckpt")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    places = {"FILE": tmp_path / "model.ckpt", "OUT": tmp_path / "out", "YAML": golden / "uncond-vq-f4" / "config.yaml"}
    places |= {"TAKEN": tmp_path / "taken", "MODEL": "openmoji-64"}
    code, out, err = lw(monkeypatch, capsys, "convert", *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "taken"}
