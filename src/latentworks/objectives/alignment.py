"""Text before the net: captions learn which latents they belong to, by contrast alone."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentworks.conditioners.text import aligned_texts
from latentworks.config import Config
from latentworks.model import LatentDiffusion
from latentworks.nn.contrast import Contrast, Gather
from latentworks.objectives.base import Loss, Objective, keyed_noise, rows_of_processes
from latentworks.types import Batch

__all__ = ["AlignmentObjective", "AlignmentObjectiveConfig"]


class AlignmentObjectiveConfig(Config):
    """Nothing to set: how many captions are compared is the batch."""

    kind: Literal["alignment"] = "alignment"


class _Aligned(nn.Module):
    """The aligned texts of a model, as one module with its weights: what processes share."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, z0: Float[Tensor, "b z h w"], gather: Gather) -> list[Contrast]:
        """Of every one of them."""
        return [text.contrast(batch, z0, gather) for text in aligned_texts(self.model.conditioners)]


class AlignmentObjective(Objective):
    """Trains what `TextConditioner.contrast` needs of every aligned text of a `LatentDiffusion`; all else stays as it is.

    Many captions a batch make it better, and without the net a step of hundreds takes no longer than one of the net's.
    """

    best = "loss"
    averaged = ("model",)

    def __init__(self, model: LatentDiffusion, seed: int = 0) -> None:
        model.requires_grad_(False)
        for text in aligned_texts(model.conditioners):
            text.learn_to_align(True)
        self.model, self.noise = model, keyed_noise(seed)
        self.modules = {"model": _Aligned(model)}

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """One loss, the sum over the texts; the posterior's noise is drawn from generator(seed, "alignment", step, index)."""
        with torch.no_grad():
            z0 = self.model.latent(batch, self.noise("alignment", step, batch))
        loss, accuracy = _figures(self.modules["model"](batch, z0, rows_of_processes))
        yield Loss(loss, ("model",), {"loss": loss.detach(), "caption_accuracy": accuracy.detach()})

    @torch.no_grad()
    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Means over the batches."""
        texts = _Aligned(self.model)
        # the other processes do not measure
        found = [_figures(texts(batch, self.model.latent(batch), lambda rows: rows)) for batch in batches]
        loss, accuracy = (float(torch.stack(values).mean()) for values in zip(*found, strict=True))
        return {"loss": loss, "caption_accuracy": accuracy}


def _figures(contrasts: Sequence[Contrast]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    loss, accuracy = (torch.stack(values) for values in zip(*contrasts, strict=True))
    return loss.sum(), accuracy.mean()
