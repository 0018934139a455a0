"""Latentworks: turn a folder of your own images into a latent diffusion model, sample it, measure it. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentworks.checkpoints.compvis import load_compvis, load_compvis_first_stage
    from latentworks.checkpoints.compvis_save import save_compvis
    from latentworks.checkpoints.diffusers import load_diffusers
    from latentworks.checkpoints.diffusers_save import save_diffusers
    from latentworks.engine import Engine
    from latentworks.model import LatentDiffusion
    from latentworks.pipeline import Pipeline, load, load_model
    from latentworks.request import SampleRequest
    from latentworks.types import Batch, Cond

__all__ = [
    "Batch", "Cond", "Engine", "LatentDiffusion", "Pipeline", "SampleRequest", "load", "load_compvis", "load_compvis_first_stage",
    "load_diffusers", "load_model", "save_compvis", "save_diffusers",
]  # fmt: skip

_HOMES = {
    "Batch": "types", "Cond": "types", "Engine": "engine", "LatentDiffusion": "model", "Pipeline": "pipeline", "SampleRequest": "request",
    "load": "pipeline", "load_compvis": "checkpoints.compvis", "load_compvis_first_stage": "checkpoints.compvis",
    "load_diffusers": "checkpoints.diffusers", "load_model": "pipeline", "save_compvis": "checkpoints.compvis_save",
    "save_diffusers": "checkpoints.diffusers_save",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"latentworks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
