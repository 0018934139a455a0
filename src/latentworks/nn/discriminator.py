"""The patch discriminator of the first stage's adversarial loss (arXiv:1611.07004)."""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.nn.blocks import UNET_EPS, group_norm

__all__ = ["Discriminator", "DiscriminatorConfig"]


class DiscriminatorConfig(Config):
    """``layers`` halvings of the size. ``norm="batch"`` only reads the authors' files: it cannot be synchronised on a CPU."""

    in_channels: int = Field(default=3, ge=1)
    channels: int = Field(default=64, ge=1)
    layers: int = Field(default=3, ge=1)
    norm: Literal["group", "batch"] = "group"


class Discriminator(nn.Module):
    """Image to a map of logits, each judging one patch; the module list ``main`` is numbered as the authors'."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.smallest = 3 * 2**config.layers
        widths = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(config.in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if n < config.layers else 1
            batch = config.norm == "batch"
            main += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=not batch),
                nn.BatchNorm2d(after) if batch else group_norm(after, UNET_EPS),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 i j"]:
        """Logits, positive for real. Raises: ValueError when an image is too small to hold one patch."""
        if min(x.shape[2:]) < self.smallest:
            size = f"{x.shape[2]}x{x.shape[3]}"
            raise ValueError(f"layers={self.config.layers} needs images of {self.smallest} pixels or more, not {size}: use fewer layers")
        out: Tensor = self.main(x)
        return out
