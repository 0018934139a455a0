"""Fine-tuning: a model starts from another one's weights, new input channels from zero."""

import torch
from torch import Tensor, nn

from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.recipe import Model, Recipe

__all__ = ["start_from"]


@torch.no_grad()
def start_from(model: Model, other: Model, recipe: Recipe) -> list[str]:
    """Copy ``other``'s weights (``recipe`` is its own) into ``model``, in place; a line for each thing that is not simply copied.

    Input channels of the UNet that ``other`` lacks start at zero, so that the new condition is at first without effect. A conditioner that
    only one of them has, or that is of another kind or of other parts in it, starts at random, or is left out: a model of captions may
    start from one of classes. The first stage of a model of latents is the one it was built with; a first stage may start from that of a
    model of latents. Raises: ValueError naming every other mismatch, before anything is copied.
    """
    if isinstance(model, FirstStage) and not isinstance(other, FirstStage):
        other = other.first_stage
    if any(isinstance(model, kind) != isinstance(other, kind) for kind in (FirstStage, LatentDiffusion)):
        raise ValueError(f"--from: {recipe.name} is a {recipe.kind} model, but another kind is to be trained: give one of the same kind")
    skip = ("mean", "std") if isinstance(model, FirstStage) else "first_stage."
    own, given = ({key: value for key, value in m.state_dict().items() if not key.startswith(skip)} for m in (model, other))
    kinds, others = _kinds(model), _kinds(other)
    new = {name for name, kind in kinds.items() if others.get(name) != kind}
    unused = {name for name, kind in others.items() if kinds.get(name) != kind}
    shared = [key for key in own if key in given and _conditioner(key) not in new]
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


def _kinds(model: Model) -> dict[str, tuple[type[nn.Module], frozenset[str]]]:
    """What each conditioner is, and of which parts."""
    conditioners = model.conditioners if isinstance(model, LatentDiffusion) else ()
    return {f"conditioners.{i}": (type(c), frozenset(name for name, _ in c.named_children())) for i, c in enumerate(conditioners)}


def _fits(key: str, own: Tensor, given: Tensor) -> bool:
    """Whether a weight can be taken: of the same shape, or the UNet's first convolution with fewer input channels."""
    wider = key == "unet.conv_in.weight" and own.shape[1] > given.shape[1] and own.shape[0] == given.shape[0]
    return own.shape == given.shape or wider


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape))
