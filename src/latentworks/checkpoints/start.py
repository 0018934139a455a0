"""Fine-tuning: a model starts from another one's weights, new input channels from zero."""

import torch
from torch import Tensor

from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.recipe import Recipe

__all__ = ["start_from"]


@torch.no_grad()
def start_from(model: FirstStage | LatentDiffusion, other: FirstStage | LatentDiffusion, recipe: Recipe) -> list[str]:
    """Copy ``other``'s weights into ``model``, in place; a line for each thing that is not simply copied.

    Input channels of the UNet that ``other`` lacks start at zero, so that the new condition is at first without effect. The first stage of
    a latent diffusion model is the one it was built with. Raises: ValueError naming every other mismatch.
    """
    if isinstance(model, LatentDiffusion) != isinstance(other, LatentDiffusion):
        raise ValueError(f"--from: {recipe.name} is a {recipe.kind} model, but another kind is to be trained: give one of the same kind")
    own, given = model.state_dict(), other.state_dict()
    skip = "first_stage." if isinstance(model, LatentDiffusion) else ("mean", "std")
    names = [name for name in own if not name.startswith(skip)]
    notes, wrong = [], []
    for name in names:
        source = given.get(name)
        if source is None:
            notes.append(f"{name} is new and starts at random")
        elif source.shape == own[name].shape:
            own[name].copy_(source)
        elif name == "unet.conv_in.weight" and _wider(own[name], source):
            own[name].zero_()
            own[name][:, : source.shape[1]] = source
            notes.append(f"{own[name].shape[1] - source.shape[1]} new input channels start at zero")
        else:
            wrong.append(f"{name} {tuple(source.shape)} instead of {tuple(own[name].shape)}")
    if wrong or len(notes) > len(names) // 2:
        raise ValueError(f"--from: {recipe.name} does not fit this recipe: {'; '.join((wrong or notes)[:5])}; use the settings it was trained with")
    return notes


def _wider(own: Tensor, source: Tensor) -> bool:
    return own.shape[1] > source.shape[1] and own.shape[0] == source.shape[0] and own.shape[2:] == source.shape[2:]
