"""Captions and latents brought to one space by contrast, as CLIP does (arXiv:2103.00020), small enough to learn in minutes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Contrast", "Gather", "LatentTower", "contrast"]

Gather = Callable[[Tensor], Tensor]
"""The rows of all processes, of the rows of this one."""

_SCALE, _LARGEST = 20.0, 100.0
"""What cosines are multiplied by at first, and at most."""


class Contrast(NamedTuple):
    """The loss, and the share of latents for which their own caption was the likest of the batch."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


class LatentTower(nn.Module):
    """A latent of ``channels`` and any size to a vector of ``width``; it learns from `contrast` alone, and only for that."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1), nn.SiLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GroupNorm(8, 128), nn.SiLU(),
            nn.Conv2d(128, 256, 3, stride=2, padding=1), nn.GroupNorm(8, 256), nn.SiLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 256, width),
        )  # fmt: skip
        self.log_scale = nn.Parameter(torch.tensor(_SCALE).log())

    def forward(self, z0: Float[Tensor, "b z h w"]) -> Float[Tensor, "b d"]:
        """A vector for each latent; only its direction means something."""
        out: Tensor = self.net(z0)
        return out


def contrast(
    texts: Float[Tensor, "b d"], latents: Float[Tensor, "b d"], log_scale: Float[Tensor, ""], tokens: Int[Tensor, "b l"], gather: Gather
) -> Contrast:
    """Cross-entropy of which latent is whose caption's and the reverse, by cosine; captions of equal ``tokens`` are right for each other.

    Each of these texts and latents is compared with those that ``gather`` makes of them: the rows of all processes.
    """
    texts, latents = F.normalize(texts.float(), dim=1), F.normalize(latents.float(), dim=1)
    same = (tokens[:, None] == gather(tokens)[None]).all(dim=2).to(texts)
    wanted = same / same.sum(dim=1, keepdim=True)
    scale = log_scale.exp().clamp(max=_LARGEST)
    of_texts, of_latents = scale * texts @ gather(latents).T, scale * latents @ gather(texts).T
    loss = (F.cross_entropy(of_texts, wanted) + F.cross_entropy(of_latents, wanted)) / 2
    return Contrast(loss, same.gather(1, of_latents.argmax(dim=1, keepdim=True)).mean())
