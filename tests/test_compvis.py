"""The authors' files: everything in them has its place, and whatever has none is named."""

from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from latentworks.checkpoints.compvis import load_compvis, load_compvis_first_stage
from latentworks.checkpoints.compvis_keys import authors_keys, ema_key
from latentworks.conditioners import train_tokenizer
from latentworks.first_stage import KLAutoencoder, VQAutoencoder
from latentworks.model import LatentDiffusion

SUPPORTED = (
    "uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8", "layout-crossattn-vq-f4", "semantic-concat-vq-f4",
    "superres-concat-vq-f4", "inpaint-concat-vq-f4",
)  # fmt: skip


@pytest.fixture
def uncond(golden) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and YAML of the smallest model, free to be changed."""
    folder = golden / "uncond-vq-f4"
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    return state, yaml.safe_load((folder / "config.yaml").read_text())


def save(path, state):
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_weight_is_loaded_exactly(golden, name):
    """Every tensor of the model comes from the file, bit for bit, whichever of the two sets was asked for."""
    folder = golden / name
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    for ema in (True, False):
        model = load_compvis(folder / "model.ckpt", folder / "config.yaml", ema=ema)
        own, keys = model.state_dict(), authors_keys(model)
        for ours, theirs in keys.items():
            assert torch.equal(own[ours], state[ema_key(theirs) if ema and theirs.startswith("model.") else theirs]), ours
        rest = {key for key in state if key.startswith(("model.", "first_stage_model.", "cond_stage_model."))} - set(keys.values())
        assert all("to_logits" in key or (name == "inpaint-concat-vq-f4" and key.startswith("cond_stage_model.")) for key in rest)
        assert set(own) - set(keys) <= {"first_stage.mean", "first_stage.std", "first_stage.quantizer.counts"}


def test_settings_are_taken_over(golden):
    text = load_compvis(str(golden / SUPPORTED[2] / "model.ckpt"), str(golden / SUPPORTED[2] / "config.yaml"))
    assert isinstance(text, LatentDiffusion)
    assert not text.training
    assert isinstance(text.first_stage, KLAutoencoder)
    assert float(text.first_stage.std) == pytest.approx(1 / 0.18215)
    assert (text.process.config.beta_start, text.process.config.beta_end, text.process.T) == (0.00085, 0.012, 1000)
    assert text.process.config.schedule == "scaled_linear"
    vq = load_compvis(golden / SUPPORTED[0] / "model.ckpt", golden / SUPPORTED[0] / "config.yaml").first_stage
    assert isinstance(vq, VQAutoencoder)
    assert vq.quantizer.legacy
    assert float(vq.std) == 1


def test_first_stage_alone(golden, uncond, tmp_path):
    state, config = uncond
    prefix = "first_stage_model."
    alone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.logvar": torch.zeros(())}
    inner = config["model"]["params"]["first_stage_config"]
    loaded = load_compvis_first_stage(save(tmp_path / "vq.ckpt", {**alone, **extra}), {"model": inner})
    io = load_file(golden / "uncond-vq-f4" / "io.safetensors")
    with torch.no_grad():
        assert (loaded.encode_raw(io["image"]) - io["encoded"]).abs().max() <= 1e-4 * io["encoded"].abs().max()
    assert not loaded.normalised
    assert not loaded.training
    with pytest.raises(ValueError, match="conv_in"):
        load_compvis_first_stage(save(tmp_path / "part.ckpt", {k: v for k, v in alone.items() if "conv_in" not in k}), {"model": inner})


def test_files_without_averages_and_safetensors(uncond, tmp_path):
    state, config = uncond
    raw = {key: value.contiguous() for key, value in state.items() if not key.startswith("model_ema.")}
    save_file(raw, tmp_path / "model.safetensors")
    for path in (save(tmp_path / "raw.ckpt", raw), tmp_path / "model.safetensors"):
        model = load_compvis(path, config, ema=True)
        key = "model.diffusion_model.out.2.weight"
        assert torch.equal(model.unet.conv_out.weight, raw[key])


def test_half_precision_files_become_float32(uncond, tmp_path):
    state, config = uncond
    model = load_compvis(save(tmp_path / "half.ckpt", {k: v.half() if v.is_floating_point() else v for k, v in state.items()}), config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_scale_factor_of_the_file_wins(uncond, tmp_path):
    state, config = uncond
    config["model"]["params"]["scale_by_std"] = True
    with pytest.raises(ValueError, match="no scale_factor"):
        load_compvis(save(tmp_path / "a.ckpt", state), config)
    model = load_compvis(save(tmp_path / "b.ckpt", {**state, "scale_factor": torch.tensor(0.25)}), config)
    assert float(model.first_stage.std) == 4
    assert not model.first_stage.mean.any()


def test_surplus_missing_and_misshapen_keys_are_all_listed(uncond, tmp_path):
    state, config = uncond
    surplus = {"surprise.a": torch.zeros(1), "model.diffusion_model.label_emb.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 keys with no place in the model: surprise\.a, model\.diffusion_model\.label_emb\.weight"):
        load_compvis(save(tmp_path / "a.ckpt", state | surplus), config, ema=False)
    short = {k: v for k, v in state.items() if "time_embed" not in k}
    with pytest.raises(ValueError, match=r"4 weights the file lacks: model\.diffusion_model\.time_embed\.0\.weight, .*time_embed\.2\.bias"):
        load_compvis(save(tmp_path / "b.ckpt", short), config)
    bent = {**state, "model.diffusion_model.out.2.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"1 other shapes: model\.diffusion_model\.out\.2\.bias \(7,\) instead of \(3,\)"):
        load_compvis(save(tmp_path / "c.ckpt", bent), config, ema=False)
    partly = {k: v for k, v in state.items() if k != "model_ema.diffusion_modelout2bias"}
    with pytest.raises(ValueError, match=r"no average of model\.diffusion_model\.out\.2\.bias"):
        load_compvis(save(tmp_path / "d.ckpt", partly), config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unet_config", None, "unet_config: the YAML lacks it"),
        ("first_stage_config", {"target": "x.Other"}, "first stage 'Other' is not supported"),
        ("first_stage_config", {"target": "x.AutoencoderKL", "params": {}}, "ddconfig: the YAML lacks it"),
        ("beta_schedule", "sqrt", "beta_schedule: sqrt is not supported"),
        ("parameterization", "flow", "prediction"),
        ("unet_config", {"params": {"num_classes": 5}}, "num_classes: 5 do not fit: adm needs both"),
        ("unet_config", {"params": {}}, "num_heads or num_head_channels"),
    ],
)
def test_settings_that_do_not_fit_are_named(uncond, tmp_path, path, value, message):
    state, config = uncond
    config["model"]["params"][path] = value
    with pytest.raises(ValueError, match=message):
        load_compvis(save(tmp_path / "a.ckpt", state), config)


def test_files_that_are_something_else_are_named(golden, uncond, tmp_path):
    _, config = uncond
    with pytest.raises(ValueError, match="no state_dict of tensors"):
        load_compvis(save(tmp_path / "a.ckpt", [1, 2]), config)
    with pytest.raises(ValueError, match="model: the YAML has no model"):
        load_compvis(golden / SUPPORTED[0] / "model.ckpt", {"other": 1})
    with pytest.raises(ValueError, match="cannot read"):
        load_compvis(tmp_path / "missing.ckpt", config)


def test_a_text_model_takes_a_tokenizer(golden):
    folder = golden / "text-crossattn-kl-f8"
    tokenizer = train_tokenizer(["a cat"] * 5, 280)
    model = load_compvis(folder / "model.ckpt", folder / "config.yaml", tokenizer=tokenizer)
    assert model.condition({"text": ["a cat", ""]}).context.shape == (2, 16, 64)
    with pytest.raises(ValueError, match="without a tokenizer"):
        load_compvis(folder / "model.ckpt", folder / "config.yaml").condition({"text": ["a cat"]})
