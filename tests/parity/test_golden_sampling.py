"""q_sample and whole 10-step samples (DDIM, PLMS, guidance) against the authors' own code and weights; see the golden folder's README."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentworks.checkpoints.compvis import load_compvis
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.model import LatentDiffusion
from latentworks.types import Cond

MODELS = ["uncond-vq-f4", "text-crossattn-kl-f8"]


def load(golden: Path, name: str) -> tuple[LatentDiffusion, dict[str, Tensor]]:
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml", ema=True)
    return model.eval(), load_file(golden / name / "io.safetensors")


def condition(model: LatentDiffusion, io: dict[str, Tensor]) -> Cond:
    return model.condition({"tokens": io["cond_tokens"]}) if "cond_tokens" in io else Cond()


def sample(model: LatentDiffusion, io: dict[str, Tensor], sampler: str, scale: float = 1.0) -> Tensor:
    cond = condition(model, io)
    uncond = cond if scale == 1 else model.condition({"tokens": torch.zeros_like(io["cond_tokens"])})
    denoise = classifier_free(model.predict, cond, uncond, scale)
    steps = SAMPLERS[sampler](denoise, io["x_T"], model.process, model.process.timesteps(10), torch.randn_like)
    return list(steps)[-1].x


def assert_near(ours: Tensor, authors: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, authors, rtol=0, atol=tolerance * authors.abs().max().item())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_noise_network_and_clock(golden: Path, name: str) -> None:
    model, io = load(golden, name)
    assert model.process.timesteps(10) == [*reversed(io["ddim10_timesteps"].tolist()), 0]
    assert_near(model.process.add_noise(io["z0"], io["q_sample_noise"], io["t"]), io["q_sample"], 1e-5)
    x0 = model.predict(io["z_t"], io["t"], condition(model, io))
    assert_near(model.process.to_eps(x0, io["z_t"], io["t"]), io["eps_ema"], 1e-4)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_ddim_and_its_decoded_images(golden: Path, name: str) -> None:
    model, io = load(golden, name)
    z = sample(model, io, "ddim")
    assert_near(z, io["ddim10"], 1e-3)
    assert_near(model.first_stage.decode(io["ddim10"]), io["ddim10_decoded"], 1e-3)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_plms(golden: Path, name: str) -> None:
    model, io = load(golden, name)
    assert_near(sample(model, io, "plms"), io["plms10"], 1e-3)


@torch.no_grad()
def test_guidance(golden: Path) -> None:
    model, io = load(golden, "text-crossattn-kl-f8")
    assert_near(sample(model, io, "ddim", scale=3.0), io["ddim10_cfg3"], 1e-3)
