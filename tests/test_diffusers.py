"""diffusers folders: what cannot be read or written is refused in one line, before anything is written; the library is not needed."""

import json
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentworks.checkpoints import diffusers as reader
from latentworks.checkpoints.diffusers import load_diffusers
from latentworks.checkpoints.diffusers_save import save_diffusers
from latentworks.conditioners import (
    LabelConditioner,
    LabelConfig,
    LayoutConditioner,
    LayoutConfig,
    LowResConditioner,
    LowResConfig,
    SegmentationConditioner,
    SegmentationConfig,
    TextConditioner,
    TextConfig,
    train_tokenizer,
)  # fmt: skip
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet, UNetConfig

FIRST = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "groups": 4}


def model(conditioners=(), first=None, known=True, **unet):
    first_stage = build_first_stage(first or VQConfig(**FIRST, codes=16))
    if known:
        first_stage.set_statistics(torch.zeros(first_stage.channels), torch.ones(()))
    settings = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "heads": 2, "groups": 8}
    network = UNet(UNetConfig(**settings | unet), first_stage.channels, LatentDiffusion.sum_gives(conditioners))
    return LatentDiffusion(first_stage, network, Process(ProcessConfig()), conditioners)


def text(length, **more):
    sizes = {"width": 8, "layers": 1, "heads": 1, "head_channels": 8, "length": length, "vocabulary": 300}
    return TextConditioner(TextConfig(**sizes | more), train_tokenizer(["a"], 300))


CONTEXT = {"width": 8, "layers": 1, "heads": 1, "head_channels": 8}
REFUSED = {
    "layout": (lambda: model([LayoutConditioner(LayoutConfig(**CONTEXT, length=92, classes=4))]), "for a latent model with layout"),
    "segmentation": (lambda: model([SegmentationConditioner(SegmentationConfig(classes=4))]), "for a latent model with segmentation"),
    "class": (lambda: model([LabelConditioner(LabelConfig(classes=4, width=8))]), "no pipeline for a latent model with label"),
    "length": (lambda: model([text(20)]), "no pipeline for prompts of 20 tokens and a VQ first stage"),
    "neighbours": (lambda: model([text(77, neighbours=1)]), "no place for tokens that are mixed with their neighbours"),
    "vector": (lambda: model([text(77, vector=64)]), "no place for a vector of the prompt beside its tokens"),
    "small image": (lambda: model([LowResConditioner(LowResConfig(channels=1))]), "as many channels as latents, not 1 channels"),
    "large": (lambda: model([LowResConditioner(LowResConfig(fold=2))]), "small images of the latent's size alone: its first stage alone"),
    "statistics": (lambda: model(known=False), "latent statistics are not known"),
    "linear": (lambda: build_first_stage(KLConfig(**FIRST, mid_attention="linear")), "diffusers has no first stage with linear"),
    "embedding": (lambda: build_first_stage(KLConfig(**FIRST, embed_channels=2)), "embed_channels 2 and latent_channels 3 differ"),
    "identity": (lambda: build_first_stage(IdentityConfig()), "the identity has no weights"),
    "heads": (lambda: model(attention=(1, 2)), "heads: a UNet2DModel has heads of one width"),
    "blocks": (lambda: model(blocks=(1, 2)), "blocks: a UNet2DModel has as many at all sizes"),
    "groups": (lambda: model(multipliers=(1, 2), groups=32), "groups: diffusers' norms all have one number of groups"),
    "multipliers": (lambda: model(multipliers=(2, 2)), "multipliers: the first must be 1, not 2"),
    "updown": (lambda: model([text(77)], resblock_updown=True), "resblock_updown: diffusers has no block"),
    "size": (lambda: model(multipliers=(1, 2, 2, 2, 2, 2), attention=(), heads=1), "size: 32 is not possible with this model: use a mult"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_has_no_place_for_is_refused_before_anything_is_written(name, tmp_path):
    build, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as caught:
        save_diffusers(build(), tmp_path / "out", size=32)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="nothing was changed there"):
        save_diffusers(model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_weights_may_be_written_in_half_the_size_and_are_read_as_float32(tmp_path):
    save_diffusers(model(), tmp_path / "out", dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    assert {parameter.dtype for parameter in load_diffusers(tmp_path / "out").parameters()} == {torch.float32}


KEPT = "vqvae/unfolded.safetensors"
WEIGHTS = "vqvae/diffusion_pytorch_model.safetensors"
CHANGED = {
    "weights": lambda f: save_file({key: value * 1.5 for key, value in load_file(f / WEIGHTS).items()}, f / WEIGHTS),
    "scale": lambda f: change(f / "vqvae/config.json", scaling_factor=2.0),
    "file": lambda f: (f / KEPT).unlink(),
}


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("conditioner", [None, LowResConditioner(LowResConfig(channels=3))], ids=["plain", "super-resolution"])
def test_statistics_come_back_with_the_weights_they_were_folded_into(kind, conditioner, tmp_path):
    """Not a bit of the model is another one afterwards."""
    ours = model([conditioner] if conditioner else [], first=VQConfig(**FIRST, codes=16) if kind == "vq" else KLConfig(**FIRST))
    ours.first_stage.set_statistics(torch.tensor([0.5, -1.0, 2.0]), torch.tensor(1.7))
    save_diffusers(ours, tmp_path / "out", size=16)
    again = load_diffusers(tmp_path / "out").state_dict()
    assert again.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(again[key], value), key


@pytest.mark.parametrize("what", CHANGED)
def test_statistics_stay_folded_where_the_folder_was_changed(what, tmp_path):
    ours = model()
    ours.first_stage.set_statistics(torch.tensor([0.5, -1.0, 2.0]), torch.tensor(1.7))
    save_diffusers(ours, tmp_path / "out", size=16)
    CHANGED[what](tmp_path / "out")
    again = load_diffusers(tmp_path / "out").first_stage
    assert not again.mean.any()
    assert again.std == (0.5 if what == "scale" else 1)
    assert torch.equal(again.post_quant_conv.weight, load_file(tmp_path / "out" / WEIGHTS)["post_quant_conv.weight"])


def test_the_library_is_not_imported():
    code = "import sys, latentworks as lw; lw.load_diffusers, lw.save_diffusers; assert not {'diffusers', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(path, key):
    save_file({name: value for name, value in load_file(path).items() if name != key}, path)


def reshaped(path, key):
    save_file(load_file(path) | {key: torch.zeros(2, 2)}, path)


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGE = {
    "pipeline": (lambda f: change(f / "model_index.json", _class_name="FluxPipeline"), "the pipeline FluxPipeline has no counterpart here"),
    "class": (lambda f: change(f / "unet/config.json", _class_name="UNet1DModel"), "UNet1DModel has no counterpart here: did you mean"),
    "index": (lambda f: (f / "model_index.json").unlink(), "neither model_index.json"),
    "config": (lambda f: (f / "unet/config.json").unlink(), "config.json is missing"),
    "scheduler": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json is missing"),
    "weights": (lambda f: (f / UNET).unlink(), "has no weights: one of"),
    "cut": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:1000]), "cannot be read as weights"),
    "kept": (lambda f: (f / KEPT).write_bytes(b"12345678"), "unfolded.safetensors cannot be read as weights"),
    "no json": (lambda f: (f / "unet/config.json").write_text("{"), "cannot read .*config.json"),
    "kind": (lambda f: change(f / "unet/config.json", block_out_channels=7), "a value of a wrong kind"),
    "none": (lambda f: change(f / "unet/config.json", block_out_channels=None), "a value of a wrong kind"),
    "zero": (lambda f: change(f / "unet/config.json", block_out_channels=[0, 1]), "a value of a wrong kind"),
    "setting": (lambda f: change(f / "unet/config.json", freq_shift=1), "freq_shift: 1 of a UNet2DModel has no counterpart here, only 0"),
    "unknown": (lambda f: change(f / "unet/config.json", magic=3), "magic: a UNet2DModel with this setting .3. has no counterpart"),
    "block": (lambda f: change(f / "unet/config.json", down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "SkipDownBlock2D has no"),
    "mirror": (lambda f: change(f / "unet/config.json", up_block_types=["UpBlock2D", "UpBlock2D"]), "must mirror down_block_types"),
    "steps": (lambda f: change(f / "scheduler/scheduler_config.json", beta_schedule="sigmoid"), "beta_schedule: 'sigmoid' has no"),
    "huge": (lambda f: change(f / "vqvae/config.json", num_vq_embeddings=10**12), "num_vq_embeddings: 1000000000000 does not belong"),
    "many": (lambda f: change(f / "unet/config.json", layers_per_block=10**9), "layers_per_block: 1000000000 does not belong"),
    "long": (lambda f: change(f / "scheduler/scheduler_config.json", num_train_timesteps=10**12), "num_train_timesteps: 1000000000000 are"),
    "missing": (lambda f: without(f / UNET, "conv_in.weight"), "1 weights are missing: conv_in.weight"),
    "surplus": (lambda f: reshaped(f / UNET, "extra.weight"), "1 weights have no place in this model: extra.weight"),
    "shape": (lambda f: reshaped(f / UNET, "conv_in.weight"), "unet.conv_in.weight has shape .2, 2. instead of .16, 3, 3, 3."),
    "channels": (lambda f: change(f / "unet/config.json", in_channels=5), "in_channels: 5 do not go with latents of 3"),
    "projections": (lambda f: reshaped(f / UNET, "mid_block.attentions.0.to_q.weight"), "qkv.weight has shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_read_is_said_in_one_line(name, tmp_path):
    damage, reason = DAMAGE[name]
    save_diffusers(model(), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ValueError, match=reason) as caught:
        load_diffusers(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "out" in str(caught.value)


def test_the_hub_is_asked_only_for_what_looks_like_an_id(tmp_path, monkeypatch):
    save_diffusers(model().first_stage, tmp_path / "vq", size=16)
    asked = []

    def download(repository, allow_patterns):
        asked.append(repository)
        return str(tmp_path / "vq")

    monkeypatch.setattr(reader, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    load_diffusers("vq")
    for name, reason in {"vqq": "no such folder", "a/b/c": "no such folder", "/vq/x": "no such folder", "../x": "no such folder"}.items():
        with pytest.raises(ValueError, match=reason):
            load_diffusers(name)
    with pytest.raises(ValueError, match="not asked when offline"):
        load_diffusers("someone/vq", offline=True)
    assert asked == []
    load_diffusers("someone/vq")
    assert asked == ["someone/vq"]


def test_weights_in_several_files(tmp_path):
    save_diffusers(model().first_stage, tmp_path / "vq", size=16)
    file = tmp_path / "vq" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for part in set(names.values()):
        save_file({key: tensors[key] for key in tensors if names[key] == part}, tmp_path / "vq" / part)
    index = tmp_path / "vq" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    load_diffusers(tmp_path / "vq")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))
    with pytest.raises(ValueError, match="must name files of this folder"):
        load_diffusers(tmp_path / "vq")


PARTS = ["model_index.json", "unet/config.json", "vqvae/config.json", "bert/config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("part", PARTS)
def test_no_value_of_a_setting_crashes(part, tmp_path):
    """Each setting replaced by values of other kinds: a model, or a ValueError."""
    save_diffusers(model([text(77)]), tmp_path / "out")
    file = tmp_path / "out" / part
    before = file.read_text()
    for key in json.loads(before):
        for value in (None, -1, 10**20, "x", ["x", 1]):
            file.write_text(json.dumps(json.loads(before) | {key: value}))
            with suppress(ValueError):
                load_diffusers(tmp_path / "out")
