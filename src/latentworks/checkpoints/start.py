"""Fine-tuning: a model starts from another one's weights, new input channels from zero."""

from collections.abc import Collection

import torch
from torch import Tensor

from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.recipe import Recipe

__all__ = ["start_from"]


@torch.no_grad()
def start_from(model: FirstStage | LatentDiffusion, other: FirstStage | LatentDiffusion, recipe: Recipe) -> list[str]:
    """Copy ``other``'s weights (``recipe`` is its own) into ``model``, in place; a line for each thing that is not simply copied.

    Input channels of the UNet that ``other`` lacks start at zero, so that the new condition is at first without effect. A conditioner that
    only one of them has starts at random, or is left out. The first stage of a latent diffusion model is the one it was built with; a
    first stage may start from that of a latent diffusion model.
    Raises: ValueError naming every other mismatch, before anything is copied.
    """
    if isinstance(model, FirstStage) and isinstance(other, LatentDiffusion):
        other = other.first_stage
    if isinstance(model, LatentDiffusion) != isinstance(other, LatentDiffusion):
        raise ValueError(f"--from: {recipe.name} is a {recipe.kind} model, but another kind is to be trained: give one of the same kind")
    skip = "first_stage." if isinstance(model, LatentDiffusion) else ("mean", "std")
    own, given = ({key: value for key, value in m.state_dict().items() if not key.startswith(skip)} for m in (model, other))
    new, unused = _conditioners(own) - _conditioners(given), _conditioners(given) - _conditioners(own)
    shared = [key for key in own if key in given]
    wrong = [f"{key} {_shape(given[key])} instead of {_shape(own[key])}" for key in shared if not _fits(key, own[key], given[key])]
    wrong += [f"{key} is missing in it" for key in own if key not in given and _conditioner(key) not in new]
    wrong += [f"{key} has no place here" for key in given if key not in own and _conditioner(key) not in unused]
    if wrong:
        named = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ValueError(f"--from: {recipe.name} does not fit this recipe: {named}; use the settings it was trained with")
    notes = [f"{name} is new and starts at random" for name in sorted(new)] + [f"{name} is left out" for name in sorted(unused)]
    for key in shared:
        if own[key].shape != given[key].shape:
            notes.append(f"{own[key].shape[1] - given[key].shape[1]} new input channels start at zero")
            own[key].zero_()
            own[key][:, : given[key].shape[1]] = given[key]
        else:
            own[key].copy_(given[key])
    return notes


def _conditioner(key: str) -> str:
    """ "conditioners.0" of all its weights; "" for anything else."""
    return ".".join(key.split(".")[:2]) if key.startswith("conditioners.") else ""


def _conditioners(keys: Collection[str]) -> set[str]:
    return {_conditioner(key) for key in keys} - {""}


def _fits(key: str, own: Tensor, given: Tensor) -> bool:
    """Whether a weight can be taken: of the same shape, or the UNet's first convolution with fewer input channels."""
    wider = key == "unet.conv_in.weight" and own.shape[1] > given.shape[1] and own.shape[0] == given.shape[0]
    return own.shape == given.shape or wider


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
