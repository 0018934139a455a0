"""The denoising UNet (the authors' ``UNetModel``, ADM lineage): flat encoder, middle and decoder lists joined by skip connections."""

import math
from abc import ABC
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.nn.attention import AttentionBlock, SpatialTransformer
from latentworks.nn.blocks import UNET_EPS, Downsample, ResBlock, Upsample, group_norm, zero
from latentworks.types import Cond, Gives

__all__ = ["ContractingPath", "UNet", "UNetConfig", "time_embedding"]


class UNetConfig(Config):
    """Sizes. Level i has ``channels * multipliers[i]`` channels at 1/2^i of the latent's size.

    ``attention`` lists down-sampling factors of the latent (1, 2, 4, ...). Give ``heads``, or ``head_channels`` per head; neither
    means 32 channels per head. ``depth``: transformer blocks per SpatialTransformer, when there is a context; ``attention_order``: how
    the channels of an `AttentionBlock` are arranged, when there is none.
    """

    channels: int = Field(default=192, ge=2, multiple_of=2)
    multipliers: tuple[int, ...] = (1, 2, 3, 5)
    blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (8, 4, 2)
    heads: int | None = Field(default=None, ge=1)
    head_channels: int | None = Field(default=None, ge=1)
    decoder_heads: int | None = Field(default=None, ge=1)  # of an `AttentionBlock` in the decoder; None: as elsewhere
    depth: int = Field(default=1, ge=1)
    attention_order: Literal["head", "qkv"] = "head"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    scale_shift: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    groups: int = Field(default=32, ge=1)  # of every norm; 32 are the authors', see `group_norm` for narrow nets

    @model_validator(mode="after")
    def _check(self) -> "UNetConfig":
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers: give one positive integer per level, not {list(self.multipliers)}")
        if min(self.blocks_per_level) < 1 or len(self.blocks_per_level) != len(self.multipliers):
            raise ValueError(f"blocks: give a positive number, or one for each of the {len(self.multipliers)} levels, not {self.blocks}")
        if self.heads is not None and self.head_channels is not None:
            raise ValueError(f"heads={self.heads} and head_channels={self.head_channels} are two ways to say one thing: give one of them")
        for factor in self.attention:
            if factor not in self.factors:
                raise ValueError(f"attention: {factor} is not a down-sampling factor of this UNet: use some of {self.factors}")
        for factor, multiplier in zip(self.factors, self.multipliers, strict=True):
            if factor in self.attention or factor == self.factors[-1]:
                self.heads_of(self.channels * multiplier)
            if factor in self.attention and self.decoder_heads and self.channels * multiplier % self.decoder_heads:
                raise ValueError(f"decoder_heads: {self.decoder_heads} do not divide a level of {self.channels * multiplier} channels")
        return self

    @property
    def factors(self) -> list[int]:
        """The down-sampling factor of each level."""
        return [2**i for i in range(len(self.multipliers))]

    @property
    def blocks_per_level(self) -> tuple[int, ...]:
        """``blocks`` spelt out."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else self.blocks

    def heads_of(self, channels: int) -> int:
        """Attention heads at a level of so many channels. Raises: ValueError when they do not divide."""
        if self.heads is not None:
            if channels % self.heads:
                raise ValueError(f"heads: {self.heads} do not divide the {channels} channels of a level with attention")
            return self.heads
        each = self.head_channels or 32
        if channels % each:
            raise ValueError(
                f"head_channels: {each} do not divide a level of {channels} channels with attention: set heads or head_channels"
            )
        return channels // each


def time_embedding(t: Int[Tensor, " b"], channels: int) -> Float[Tensor, "b c"]:
    """[cos(t f_i), sin(t f_i)] with f_i = 10000^(-i / half), in float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Stage(nn.Module):
    """One entry of the encoder, middle or decoder list: a residual block, then attention, then resampling; each may be missing."""

    def __init__(
        self,
        resnet: ResBlock | None = None,
        attention: AttentionBlock | SpatialTransformer | None = None,
        resample: ResBlock | Downsample | Upsample | None = None,
    ) -> None:
        super().__init__()
        self.resnet, self.attention, self.resample = resnet, attention, resample

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        if self.resnet is not None:
            h = self.resnet(h, emb)
        if self.attention is not None:
            h = self.attention(h, context)
        if self.resample is not None:
            h = self.resample(h, emb) if isinstance(self.resample, ResBlock) else self.resample(h)
        return h


class ContractingPath(nn.Module, ABC):
    """Abstract: time embedding, encoder and middle, the half of a UNet that a classifier of noisy latents has too (ADM).

    ``channels`` of the latent; ``gives``: the widths of the condition's routes. ``skips``: the channels of every output of the encoder.
    Raises: ValueError when ``gives.vector`` is neither 0 nor four times ``config.channels``, the width of the time embedding.
    """

    def __init__(self, config: UNetConfig, channels: int, gives: Gives) -> None:
        super().__init__()
        emb = 4 * config.channels
        if gives.vector not in (0, emb):
            raise ValueError(
                f"vector: a condition {gives.vector} wide cannot be added to the time embedding: its width must be {emb}, 4 times "
                f"unet.channels: for a prompt --set conditioners.0.vector={emb}, for a class --set conditioners.0.width={emb}"
            )
        self.config, self.channels, self.gives = config, channels, gives
        self.time_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.conv_in = nn.Conv2d(channels + gives.concat, config.channels, 3, padding=1)
        self.widths = [config.channels * m for m in config.multipliers]
        self.skips = [config.channels]
        self.encoder = self._encoder()
        middle = [self._resnet(self.widths[-1], self.widths[-1]) for _ in range(2)]
        self.middle = nn.ModuleList([Stage(middle[0], self._attention(self.widths[-1])), Stage(middle[1])])

    def _resnet(self, channels: int, out_channels: int, resample: Literal["up", "down"] | None = None) -> ResBlock:
        config = self.config
        return ResBlock(channels, 4 * config.channels, out_channels, config.dropout, config.scale_shift, resample, config.groups)

    def _attention(self, channels: int, decoder: bool = False) -> AttentionBlock | SpatialTransformer:
        heads = self.config.heads_of(channels)
        if self.gives.context:
            return SpatialTransformer(channels, heads, self.gives.context, self.config.depth, self.config.groups)
        if decoder and self.config.decoder_heads is not None:
            heads = self.config.decoder_heads
        return AttentionBlock(channels, heads, self.config.groups, self.config.attention_order)

    def _encoder(self) -> nn.ModuleList:
        config, stages, now = self.config, nn.ModuleList(), self.config.channels
        for i, (width, blocks) in enumerate(zip(self.widths, config.blocks_per_level, strict=True)):
            for _ in range(blocks):
                attention = self._attention(width) if config.factors[i] in config.attention else None
                stages.append(Stage(self._resnet(now, width), attention))
                now = width
                self.skips.append(now)
            if i < len(self.widths) - 1:
                if config.resblock_updown:
                    stages.append(Stage(self._resnet(now, now, "down")))
                else:
                    stages.append(Stage(resample=Downsample(now, "around", config.conv_resample)))
                self.skips.append(now)
        return stages

    def contract(self, x: Tensor, t: Tensor, cond: Cond) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Every output of the encoder and, last, the middle's; the time embedding and the context that later stages take.

        Raises: ValueError naming a missing or superfluous route of ``cond``, or a size that cannot be halved often enough.
        """
        self._check(x, cond)
        emb = self.time_embed(time_embedding(t, self.config.channels).to(x.dtype))
        emb = emb if cond.vector is None else emb + cond.vector.to(x.dtype)
        context = None if cond.context is None else cond.context.to(x.dtype)
        h = self.conv_in(x if cond.concat is None else torch.cat([x, cond.concat.to(x.dtype)], dim=1))
        outputs = [h]
        for stage in self.encoder:
            h = stage(h, emb, context)
            outputs.append(h)
        for stage in self.middle:
            h = stage(h, emb, context)
        return [*outputs, h], emb, context

    def _check(self, x: Tensor, cond: Cond) -> None:
        axes = {"concat": 1, "context": 2, "vector": 1}
        for route, width in self.gives._asdict().items():
            value = getattr(cond, route)
            if width and value is None:
                raise ValueError(f"{route}: this UNet was built for a condition {width} wide on this route, but none was given")
            if value is not None and value.shape[axes[route]] != width:
                got = value.shape[axes[route]]
                raise ValueError(f"{route}: a condition {got} wide was given, but this UNet takes {width or 'none'} on this route")
        if x.shape[1] != self.channels:
            raise ValueError(f"x has {x.shape[1]} channels, but this UNet denoises latents of {self.channels}")
        if cond.concat is not None and cond.concat.shape[2:] != x.shape[2:]:
            raise ValueError(f"concat: its size {tuple(cond.concat.shape[2:])} must be that of the latent, {tuple(x.shape[2:])}")
        step = self.config.factors[-1]
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"a latent of {x.shape[2]}x{x.shape[3]} cannot be halved {len(self.config.factors) - 1} times: use multiples of {step}"
            )


class UNet(ContractingPath):
    """Predicts eps, x0 or v of a noisy latent."""

    def __init__(self, config: UNetConfig, channels: int, gives: Gives) -> None:
        super().__init__(config, channels, gives)
        self.decoder = self._decoder()
        self.norm_out = group_norm(self.widths[0], UNET_EPS, config.groups)
        self.conv_out = zero(nn.Conv2d(self.widths[0], channels, 3, padding=1))

    def _decoder(self) -> nn.ModuleList:
        config, stages, now, skips = self.config, nn.ModuleList(), self.widths[-1], list(self.skips)
        for i in reversed(range(len(self.widths))):
            width, blocks = self.widths[i], config.blocks_per_level[i] + 1
            for block in range(blocks):
                resnet = self._resnet(now + skips.pop(), width)
                attention = self._attention(width, decoder=True) if config.factors[i] in config.attention else None
                resample: ResBlock | Upsample | None = None
                if i and block == blocks - 1:
                    resample = self._resnet(width, width, "up") if config.resblock_updown else Upsample(width, config.conv_resample)
                stages.append(Stage(resnet, attention, resample))
                now = width
        return stages

    def forward(self, x: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], cond: Cond) -> Float[Tensor, "b c h w"]:
        """The network's prediction for latents ``x`` at steps ``t``, in x's dtype. Raises: as `contract`."""
        (*skips, h), emb, context = self.contract(x, t, cond)
        for stage in self.decoder:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context)
        out: Tensor = self.conv_out(nn.functional.silu(self.norm_out(h)))
        return out.to(x.dtype)
