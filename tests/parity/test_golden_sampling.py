"""All seven reference models, every tensor of them, against the authors' own code and weights; see the golden folder's README."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentworks.checkpoints.compvis import load_compvis
from latentworks.conditioners import LabelConditioner, LowResConditioner
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.model import LatentDiffusion
from latentworks.types import Batch, Cond

MODELS = [
    "uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8", "layout-crossattn-vq-f4", "semantic-concat-vq-f4",
    "superres-concat-vq-f4", "inpaint-concat-vq-f4",
]  # fmt: skip
GUIDED = MODELS[1:4]


@cache
def load(folder: Path, ema: bool = True) -> tuple[LatentDiffusion, dict[str, Tensor]]:
    return load_compvis(folder / "model.ckpt", folder / "config.yaml", ema=ema), load_file(folder / "io.safetensors")


def batch_of(model: LatentDiffusion, io: dict[str, Tensor]) -> Batch:
    """The condition as a user gives it."""
    names = {"cond_tokens": "tokens", "cond_class": "label", "segmentation": "segmentation", "mask": "mask", "masked_image": "masked_image"}
    batch: Batch = {ours: io[theirs] for theirs, ours in names.items() if theirs in io}  # type: ignore[misc]
    if any(isinstance(conditioner, LowResConditioner) for conditioner in model.conditioners):
        batch["low_res"] = io["concat"]
    return batch


def uncond_batch(model: LatentDiffusion, io: dict[str, Tensor]) -> Batch:
    """Class 4, or tokens of zeros: what the reference run took for the unconditional half."""
    if isinstance(model.conditioners[0], LabelConditioner):
        return {"label": torch.full_like(io["cond_class"], 4)}
    return {"tokens": torch.zeros_like(io["cond_tokens"])}


def sample(model: LatentDiffusion, io: dict[str, Tensor], sampler: str, scale: float = 1.0) -> Tensor:
    cond = model.condition(batch_of(model, io))
    uncond = cond if scale == 1 else model.condition(uncond_batch(model, io))
    denoise = classifier_free(model.predict, cond, uncond, scale)
    steps = SAMPLERS[sampler](denoise, io["x_T"], model.process, model.process.timesteps(10), torch.randn_like)
    return list(steps)[-1].x


def assert_near(ours: Tensor | None, authors: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, authors, rtol=0, atol=tolerance * authors.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_compared_somewhere_here(golden: Path, name: str) -> None:
    """So that none that is added there is forgotten here."""
    inputs = {"image", "cond_class", "cond_tokens", "segmentation", "mask", "masked_image", "z_t", "t", "q_sample_noise", "x_T"}
    outputs = {
        "encoded", "posterior_mean", "posterior_logvar", "z0", "decoded", "context", "uncond_context", "concat", "eps_raw", "eps_ema",
        "q_sample", "ddim10", "ddim10_timesteps", "plms10", "ddim10_cfg3", "ddim10_decoded",
    }  # fmt: skip
    _, io = load(golden / name)
    assert io.keys() <= inputs | outputs
    assert ("ddim10_cfg3" in io) == (name in GUIDED)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_first_stage(golden: Path, name: str) -> None:
    model, io = load(golden / name)
    raw = model.first_stage.encode_raw(io["image"])
    if "encoded" in io:
        assert_near(raw, io["encoded"])
    else:
        mean, logvar = raw.chunk(2, dim=1)
        assert_near(mean, io["posterior_mean"])
        assert_near(logvar.clamp(-30, 20), io["posterior_logvar"])
    assert_near(model.encode(io["image"]), io["z0"])
    assert_near(model.first_stage.decode(io["z0"]), io["decoded"])
    assert_near(model.first_stage.decode(io["ddim10"]), io["ddim10_decoded"], 1e-3)


@pytest.mark.parametrize("name", MODELS[1:])
@torch.no_grad()
def test_conditions(golden: Path, name: str) -> None:
    model, io = load(golden / name)
    cond = model.condition(batch_of(model, io))
    assert (cond.context is None, cond.concat is None, cond.vector) == ("context" not in io, "concat" not in io, None)
    if "context" in io:
        assert_near(cond.context, io["context"])
        assert_near(model.condition(uncond_batch(model, io)).context, io["uncond_context"])
    else:
        assert_near(cond.concat, io["concat"])


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_noise_network_and_clock(golden: Path, name: str, ema: bool) -> None:
    model, io = load(golden / name, ema)
    assert model.process.timesteps(10) == [*reversed(io["ddim10_timesteps"].tolist()), 0]
    assert_near(model.process.add_noise(io["z0"], io["q_sample_noise"], io["t"]), io["q_sample"], 1e-5)
    for cond in (model.condition(batch_of(model, io)), Cond(context=io.get("context"), concat=io.get("concat"))):
        x0 = model.predict(io["z_t"], io["t"], cond)
        right, other = (io["eps_ema"], io["eps_raw"]) if ema else (io["eps_raw"], io["eps_ema"])
        eps = model.process.to_eps(x0, io["z_t"], io["t"])
        assert_near(eps, right)
        assert (eps - other).abs().max() > 1e-2 * other.abs().max()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_ddim_and_plms(golden: Path, name: str) -> None:
    model, io = load(golden / name)
    assert_near(sample(model, io, "ddim"), io["ddim10"], 1e-3)
    assert_near(sample(model, io, "plms"), io["plms10"], 1e-3)


@pytest.mark.parametrize("name", GUIDED)
@torch.no_grad()
def test_guidance(golden: Path, name: str) -> None:
    model, io = load(golden / name)
    assert_near(sample(model, io, "ddim", scale=3.0), io["ddim10_cfg3"], 1e-3)
