"""Writes a model as the authors' files have it: one file of weights, and its YAML and vocabulary beside it."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from latentworks.checkpoints.compvis import VOCABULARY
from latentworks.checkpoints.compvis_keys import FIRST_STAGE, authors_keys
from latentworks.checkpoints.compvis_yaml import to_yaml
from latentworks.checkpoints.fold import fold
from latentworks.checkpoints.tensors import write_tensors
from latentworks.conditioners import Conditioner
from latentworks.diffusion.process import Process
from latentworks.first_stage import FirstStage, IdentityFirstStage, KLAutoencoder, VQAutoencoder
from latentworks.model import LatentDiffusion
from latentworks.staging import staged_file

__all__ = ["save_compvis"]


def save_compvis(model: LatentDiffusion | FirstStage, file: str | Path, size: int = 256) -> list[str]:
    """Write ``file`` (``.ckpt`` or ``.safetensors``) and FILE's ``.yaml`` beside it; lines on what the authors' code does not know.

    The mean of latents, which their files cannot say, is folded into the 1x1 convolutions around them. ``size``: pixels a side it draws.
    `load_compvis` reads it again to equal outputs. Raises: ValueError for another suffix, or naming what has no place in their files.
    """
    path = Path(file)
    if path.suffix not in (".ckpt", ".safetensors"):
        raise ValueError(f"{path}: its name must end in .ckpt or .safetensors")
    config, notes = to_yaml(model, size)
    tensors = _tensors(model)
    vocabulary = _vocabulary(model)
    if isinstance(model, FirstStage) and model.normalised:
        notes.append("the statistics of latents are left out: the authors keep them with the model that is trained on them")
    if path.suffix == ".safetensors":
        write_tensors(path, tensors)
    else:
        with staged_file(path) as temporary:
            torch.save({"state_dict": tensors, "global_step": 0}, temporary)
    with staged_file(path.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if vocabulary:
        name = path.with_suffix(VOCABULARY)
        with staged_file(name) as temporary:
            temporary.write_text(vocabulary, encoding="utf-8")
        notes.append(f"{name.name} holds the vocabulary, for which their files have no place")
    return notes


def _tensors(model: LatentDiffusion | FirstStage) -> dict[str, Tensor]:
    """All weights by the authors' names, and the buffers they keep with them."""
    own: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict().items()}
    if isinstance(model, FirstStage):
        return {theirs: own[ours] for ours, theirs in authors_keys(model).items()}
    first_stage = model.first_stage
    if not first_stage.normalised:
        raise ValueError("first_stage: it has no latent statistics, so its scale_factor is not known: call set_statistics")
    tensors = {theirs: own[ours] for ours, theirs in authors_keys(model).items()}
    if bool(first_stage.mean.any()):
        if isinstance(first_stage, IdentityFirstStage):
            raise ValueError("first_stage: the authors' files have no place for means of pixels: use statistics 0 and 1")
        assert isinstance(first_stage, KLAutoencoder | VQAutoencoder)
        names = authors_keys(first_stage)
        folded = fold(first_stage.state_dict(), first_stage.mean, torch.ones(()))
        tensors |= {FIRST_STAGE + names[ours]: value for ours, value in folded.items()}
    return tensors | _schedule(model.process)


def _schedule(process: Process) -> dict[str, Tensor]:
    """The twelve buffers of their DDPM class, computed in float64 as there."""
    abar = process.alpha[:-1] ** 2
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    betas = 1 - abar / before
    variance = betas * (1 - before) / (1 - abar)
    buffers: dict[str, Tensor] = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": abar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - abar),
    }
    return {name: value.float() for name, value in buffers.items()}


def _vocabulary(model: Any) -> str:
    """The tokenizer of a text model, as JSON; "" if it has none."""
    conditioners = model.conditioners if isinstance(model, LatentDiffusion) else ()
    texts = [str(c.assets().get("tokenizer.json", "")) for c in conditioners if isinstance(c, Conditioner)]
    return next((text for text in texts if text), "")
