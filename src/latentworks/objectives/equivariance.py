"""Equivariance of a first stage: what is done to a latent shows in the image (EQ-VAE, arXiv:2502.09509).

Latents that keep it are smoother and easier to diffuse. The regulariser costs no further pass: the changed latent is decoded in place of
the latent, and compared with the changed image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentworks.random import generator

__all__ = ["Change", "draw_change"]

SMALLEST = 0.5


class Change(NamedTuple):
    """``scale``, at most 1, of both sides; the axes that are flipped: -2 upside down, -1 left to right."""

    scale: float
    flipped: tuple[int, ...]

    def __call__(self, x: Float[Tensor, "b c h w"], unit: int = 1) -> Float[Tensor, "b c h2 w2"]:
        """``unit``: 1 for a latent, f for an image, whose sides then stay f times the latent's."""
        if self.scale < 1:
            height, width = (unit * max(1, round(side / unit * self.scale)) for side in x.shape[2:])
            x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
        return x.flip(self.flipped) if self.flipped else x


def draw_change(share: float, *key: int | str) -> Change | None:
    """A function of the key: None but for ``share`` of all keys; then a scale from 0.5 to 1 and either flip half of the time."""
    chance, size, *flips = torch.rand(4, generator=generator(*key, "change")).tolist()
    if chance >= share:
        return None
    return Change(SMALLEST + (1 - SMALLEST) * size, tuple(axis for axis, drawn in zip((-2, -1), flips, strict=True) if drawn < 0.5))
