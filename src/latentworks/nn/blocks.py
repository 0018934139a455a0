"""Convolutional building blocks: norms, residual blocks and resampling of the first stage and of the UNet. Everything is plain NCHW."""

from collections.abc import Callable
from math import gcd
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "FIRST_STAGE_EPS", "UNET_EPS", "Downsample", "Norm", "ResBlock", "ResnetBlock", "Upsample", "group_norm", "plain", "swish", "zero",
]  # fmt: skip

FIRST_STAGE_EPS = 1e-6  # first stage and SpatialTransformer; the UNet's own blocks use PyTorch's 1e-5
UNET_EPS = 1e-5
M = TypeVar("M", bound=nn.Module)

Norm = Callable[[nn.GroupNorm, Tensor], Tensor]
"""How a GroupNorm is applied: with the statistics of its input, which is `plain`, or with others, as for a tile of a larger image."""


def plain(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """As it is."""
    out: Tensor = norm(x)
    return out


def group_norm(channels: int, eps: float, groups: int = 32) -> nn.GroupNorm:
    """GroupNorm of so many groups (of their greatest common divisor with ``channels`` where they do not divide).

    32 are the authors'. In a narrow net that leaves one or two channels a group, and the norm takes away how bright and which colour an
    image is: 4 channels a group or more keep it.

    No cast to float32: the native kernel keeps its sums in float32 for bfloat16 input, and copies would cost more than the norm.
    """
    return nn.GroupNorm(gcd(groups, channels), channels, eps=eps)


def zero(module: M) -> M:
    """The module with all parameters set to zero, so that its residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x), the first stage's activation; in float32 factor by factor, as the authors' code has it.

    Adam makes a step of the learning rate out of the last bit of a gradient near zero, so only the same rounding repeats their training
    (with `F.silu` a GAN parts from it after two steps). In bfloat16, where no such claim is made, the one kernel is faster, rounding once.
    """
    return x * torch.sigmoid(x) if x.dtype == torch.float32 else F.silu(x)


class ResnetBlock(nn.Module):
    """The first stage's residual block: (norm, swish, conv) twice, a 1x1 convolution on the skip when channels change."""

    def __init__(self, channels: int, out_channels: int, dropout: float = 0.0, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, FIRST_STAGE_EPS, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, FIRST_STAGE_EPS, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], norm: Norm = plain) -> Float[Tensor, "b o h w"]:
        """Same size, ``out_channels``."""
        h = self.conv2(self.dropout(swish(norm(self.norm2, self.first_half(x, norm)))))
        out: Tensor = self.skip(x) + h
        return out

    def first_half(self, x: Float[Tensor, "b c h w"], norm: Norm = plain) -> Float[Tensor, "b o h w"]:
        """What the second norm takes."""
        out: Tensor = self.conv1(swish(norm(self.norm1, x)))
        return out


class Downsample(nn.Module):
    """Halve the size by a 3x3 convolution of stride 2, or by averaging 2x2 when ``conv`` is false.

    ``pad="after"`` is the first stage's: zeros only on the right and below. ``pad="around"`` is the UNet's.
    """

    def __init__(self, channels: int, pad: Literal["after", "around"], conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if pad == "around" else 0) if conv else None
        self.pad = pad

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Size H/2 x W/2."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad == "after" else x)
        return out


class Upsample(nn.Module):
    """Double the size by nearest neighbour, then a 3x3 convolution unless ``conv`` is false. The same in both networks."""

    def __init__(self, channels: int, conv: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Size 2H x 2W."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """The UNet's residual block, told the time by ``emb`` (ADM, arXiv:2105.05233).

    ``scale_shift``: the embedding scales and shifts the second norm instead of being added before it. ``resample``: the block itself
    halves ("down") or doubles ("up") the size between its first norm and convolution, and on the skip (BigGAN).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resample: Literal["up", "down"] | None = None,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, UNET_EPS, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = group_norm(out_channels, UNET_EPS, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.scale_shift = scale_shift
        kinds = {"up": Upsample(channels, conv=False), "down": Downsample(channels, "around", conv=False), None: nn.Identity()}
        self.resample = kinds[resample]

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b o h2 w2"]:
        """Same size unless it resamples, ``out_channels``."""
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        x = self.resample(x)
        shift = self.emb(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out
