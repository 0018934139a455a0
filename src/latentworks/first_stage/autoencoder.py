"""Encoder and decoder of a first stage, for any down-sampling factor f = 2^n (Appendix G; the authors' ``Encoder``, ``Decoder``)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Literal, cast

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.nn.attention import AttnBlock, LinearAttnBlock
from latentworks.nn.blocks import FIRST_STAGE_EPS, Downsample, Norm, ResnetBlock, Upsample, group_norm, plain, swish

__all__ = ["AutoencoderConfig", "Chain", "Decoder", "Encoder", "Run", "through", "whole"]


class AutoencoderConfig(Config):
    """Sizes. Level i has ``channels * multipliers[i]`` channels at 1/2^i of the image's size, hence f = 2^(len(multipliers) - 1)."""

    in_channels: int = Field(default=3, ge=1)
    channels: int = Field(default=128, ge=1)
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = Field(default=2, ge=1)
    latent_channels: int = Field(default=3, ge=1)  # of the encoder's output (z_channels)
    embed_channels: int | None = Field(default=None, ge=1)  # of the latent, behind a 1x1 convolution; None: latent_channels
    attention: tuple[int, ...] = ()  # down-sampling factors with attention: linear if that of the middle is, else full
    mid_attention: Literal["full", "linear", "none"] = "full"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    groups: int = Field(default=32, ge=1)  # of every norm; 32 are the authors', see `group_norm` for narrow nets

    @model_validator(mode="after")
    def _levels(self) -> "AutoencoderConfig":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: give one positive integer per level, not {list(self.multipliers)}")
        factors = [2**i for i in range(len(self.multipliers))]
        for factor in self.attention:
            if factor not in factors:
                raise ValueError(f"attention: {factor} is not a down-sampling factor of this first stage: use some of {factors}")
        return self

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def embedding(self) -> int:
        """Channels of the latent."""
        return self.embed_channels or self.latent_channels


def through(parts: Iterable[nn.Module], h: Float[Tensor, "b c h w"], norm: Norm = plain) -> Float[Tensor, "b o h2 w2"]:
    """``h`` through one part after the other, every GroupNorm of a residual block applied by ``norm``; swish follows one on its own."""
    for part in parts:
        match part:
            case ResnetBlock():
                h = part(h, norm)
            case nn.GroupNorm():
                h = swish(norm(part, h))
            case _:
                h = part(h)
    return h


class Chain(nn.Module, ABC):
    """Abstract. A network without skips from part to part, so that it may be run as a whole or, part by part, in tiles."""

    @abstractmethod
    def parts(self) -> list[nn.Module]:
        """All it consists of, in the order of `through`."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        """As a whole."""
        return through(self.parts(), x)


Run = Callable[[Chain, Tensor], Tensor]
"""How a chain is run: `whole`, or as `latentworks.first_stage.tiled.in_tiles` says."""


def whole(chain: Chain, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
    """At once."""
    out: Tensor = chain(x)
    return out


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each with attention or not, then a resampling or nothing."""

    def __init__(self, channels: list[int], attention: bool, config: AutoencoderConfig, resample: nn.Module | None) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.resnets = nn.ModuleList(ResnetBlock(before, after, config.dropout, config.groups) for before, after in pairs)
        linear = config.mid_attention == "linear"
        attentions = (LinearAttnBlock(after) if linear else AttnBlock(after, config.groups) for _, after in pairs if attention)
        self.attentions = nn.ModuleList(attentions)
        self.resample = resample or nn.Identity()

    def parts(self) -> list[nn.Module]:
        """See `Chain`."""
        blocks = zip(self.resnets, self.attentions, strict=True) if len(self.attentions) else zip(self.resnets)
        return [*(part for block in blocks for part in block), self.resample]


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.resnet1, self.resnet2 = (ResnetBlock(channels, channels, config.dropout, config.groups) for _ in range(2))
        match config.mid_attention:
            case "full":
                self.attention: nn.Module = AttnBlock(channels, config.groups)
            case "linear":
                self.attention = LinearAttnBlock(channels)
            case "none":
                self.attention = nn.Identity()

    def parts(self) -> list[nn.Module]:
        """See `Chain`."""
        return [self.resnet1, self.attention, self.resnet2]


class Encoder(Chain):
    """b in_channels H W -> b out_channels H/f W/f. ``levels[i]`` works at 1/2^i."""

    def __init__(self, config: AutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        before = config.channels
        for i, width in enumerate(widths):
            down = Downsample(width, "after") if i < len(widths) - 1 else None
            self.levels.append(Level([before] + [width] * config.blocks, 2**i in config.attention, config, down))
            before = width
        self.mid = Middle(before, config)
        self.norm_out = group_norm(before, FIRST_STAGE_EPS, config.groups)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def parts(self) -> list[nn.Module]:
        """See `Chain`."""
        levels = [part for level in self.levels for part in cast(Level, level).parts()]
        return [self.conv_in, *levels, *self.mid.parts(), self.norm_out, self.conv_out]


class Decoder(Chain):
    """b latent_channels h w -> b in_channels f*h f*w, unbounded (no tanh): the encoder's mirror, one residual block more per level.

    ``levels[i]`` works at 1/2^i, so they run from last to first.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        levels = []
        for i, width in enumerate(widths):
            before = widths[min(i + 1, len(widths) - 1)]
            up = Upsample(width) if i else None
            levels.append(Level([before] + [width] * (config.blocks + 1), 2**i in config.attention, config, up))
        self.levels = nn.ModuleList(levels)
        self.norm_out = group_norm(widths[0], FIRST_STAGE_EPS, config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def parts(self) -> list[nn.Module]:
        """See `Chain`."""
        levels = [part for level in reversed(self.levels) for part in cast(Level, level).parts()]
        return [self.conv_in, *self.mid.parts(), *levels, self.norm_out, self.conv_out]
