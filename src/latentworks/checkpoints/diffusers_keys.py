"""diffusers' names for our weights, and the few values it keeps in another shape or order. What is table here is table there."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from latentworks.first_stage import AutoencoderConfig
from latentworks.unet import UNetConfig

__all__ = ["Place", "first_stage_places", "text_places", "to_ours", "to_theirs", "unet_places"]

Kind = Literal["plain", "resnet", "pixels", "transformer"]


class Place(NamedTuple):
    """A module by its path in our class and in theirs; ``kind``: how its own weights are named."""

    ours: str
    theirs: str
    kind: Kind = "plain"


_INSIDE: dict[Kind, tuple[tuple[str, str], ...]] = {
    "plain": (),
    "resnet": ((r"^emb\.", "time_emb_proj."), (r"^skip\.", "conv_shortcut.")),
    "pixels": ((r"^norm\.", "group_norm."), (r"^(q|k|v|qkv)\.", r"to_\1."), (r"^proj_out\.", "to_out.0.")),
    "transformer": (
        (r"^blocks\.", "transformer_blocks."),
        (r"\.self_attention\.", ".attn1."),
        (r"\.cross_attention\.", ".attn2."),
        (r"\.(q|k|v)\.weight$", r".to_\1.weight"),
        (r"\.out\.", ".to_out.0."),
        (r"\.feed_forward\.proj_in\.", ".ff.net.0.proj."),
        (r"\.feed_forward\.proj_out\.", ".ff.net.2."),
    ),
}

_FORMER = ((r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."), (r"\.proj_attn\.", ".to_out.0."))
"""What attention over pixels was called before diffusers 0.15; its first folders are still around."""

_LINEAR = re.compile(r"\.(to_[qkv]|to_out\.0)\.weight$")
"""Linear there, 1x1 convolutions here."""


def first_stage_places(config: AutoencoderConfig) -> list[Place]:
    """Of a KL or VQ first stage."""
    last = len(config.multipliers) - 1
    places = [Place("quantizer", "quantize"), Place("quant_conv", "quant_conv"), Place("post_quant_conv", "post_quant_conv")]
    for part, blocks, resampler in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        places += [Place(f"{part}.{ours}", f"{part}.{theirs}") for ours, theirs in (("conv_in",) * 2, ("conv_out",) * 2)]
        places.append(Place(f"{part}.norm_out", f"{part}.conv_norm_out"))
        for i in range(last + 1):
            level = f"{part}.{blocks}.{i if part == 'encoder' else last - i}"
            places += _blocks(f"{part}.levels.{i}", level, config.blocks + 1)
            places.append(Place(f"{part}.levels.{i}.resample", f"{level}.{resampler}.0"))
        places += _middle(f"{part}.mid.resnet1", f"{part}.mid.attention", f"{part}.mid.resnet2", f"{part}.mid_block", "pixels")
    return places


def _blocks(ours: str, theirs: str, count: int) -> Iterable[Place]:
    for j in range(count):
        yield Place(f"{ours}.resnets.{j}", f"{theirs}.resnets.{j}", "resnet")
        yield Place(f"{ours}.attentions.{j}", f"{theirs}.attentions.{j}", "pixels")


def _middle(before: str, attention: str, after: str, theirs: str, kind: Kind) -> list[Place]:
    resnets = [Place(before, f"{theirs}.resnets.0", "resnet"), Place(after, f"{theirs}.resnets.1", "resnet")]
    return [*resnets, Place(attention, f"{theirs}.attentions.0", kind)]


def unet_places(config: UNetConfig, context: bool) -> list[Place]:
    """Of a UNet with cross-attention (``context``) or without."""
    kind: Kind = "transformer" if context else "pixels"
    last = len(config.multipliers) - 1
    resampler: Kind = "resnet" if config.resblock_updown else "plain"
    places = [Place("time_embed.0", "time_embedding.linear_1"), Place("time_embed.2", "time_embedding.linear_2")]
    places += [Place("conv_in", "conv_in"), Place("norm_out", "conv_norm_out"), Place("conv_out", "conv_out")]
    places += _middle("middle.0.resnet", "middle.0.attention", "middle.1.resnet", "mid_block", kind)
    n = 0
    for i, blocks in enumerate(config.blocks_per_level):
        for j in range(blocks):
            places += _stage(f"encoder.{n + j}", f"down_blocks.{i}", j, kind)
        n += blocks
        if i < last:
            part = "resnet" if config.resblock_updown else "resample"
            places.append(Place(f"encoder.{n}.{part}", f"down_blocks.{i}.downsamplers.0", resampler))
            n += 1
    n = 0
    for i in range(last + 1):
        blocks = config.blocks_per_level[last - i] + 1
        for j in range(blocks):
            places += _stage(f"decoder.{n + j}", f"up_blocks.{i}", j, kind)
        n += blocks
        if i < last:
            places.append(Place(f"decoder.{n - 1}.resample", f"up_blocks.{i}.upsamplers.0", resampler))
    return places


def _stage(ours: str, theirs: str, j: int, kind: Kind) -> list[Place]:
    return [Place(f"{ours}.resnet", f"{theirs}.resnets.{j}", "resnet"), Place(f"{ours}.attention", f"{theirs}.attentions.{j}", kind)]


def text_places(layers: int) -> list[Place]:
    """Of the text transformer that is trained jointly: our `TextTransformer`, their ``LDMBertModel``."""
    places = [Place("tokens", "model.embed_tokens"), Place("positions", "model.embed_positions"), Place("norm", "model.layer_norm")]
    for i in range(layers):
        attention, feed_forward, theirs = f"layers.{2 * i}", f"layers.{2 * i + 1}", f"model.layers.{i}"
        places.append(Place(f"{attention}.norm", f"{theirs}.self_attn_layer_norm"))
        places.append(Place(f"{feed_forward}.norm", f"{theirs}.final_layer_norm"))
        places += [Place(f"{attention}.inner.{name}", f"{theirs}.self_attn.{name}_proj") for name in ("q", "k", "v", "out")]
        places += [Place(f"{feed_forward}.inner.0", f"{theirs}.fc1"), Place(f"{feed_forward}.inner.2", f"{theirs}.fc2")]
    return places


def _names(ours: Iterable[str], places: list[Place]) -> dict[str, tuple[str, ...]]:
    """Our key -> their key, or their three keys of q, k and v."""
    known = {place.ours: place for place in places}
    names = {}
    for key in ours:
        (place,) = [known[prefix] for i in range(len(key)) if key[i] == "." and (prefix := key[:i]) in known]
        inner = key.removeprefix(place.ours + ".")
        for pattern, replacement in _INSIDE[place.kind]:
            inner = re.sub(pattern, replacement, inner)
        inner = "embedding.weight" if inner == "codebook" else inner
        full = f"{place.theirs}.{inner}"
        names[key] = tuple(full.replace(".to_qkv.", f".to_{part}.") for part in "qkv") if ".to_qkv." in full else (full,)
    return names


def to_theirs(tensors: Mapping[str, Tensor], places: list[Place], unet: UNetConfig | None = None) -> dict[str, Tensor]:
    """Our weights by their names. ``unet``: of a UNet's, whose q, k and v are one there. Their resampling has a convolution always:
    where ours has none it becomes one that averages or repeats pixels, which is the same.
    """
    out: dict[str, Tensor] = {}
    for key, names in _names(tensors, places).items():
        value = tensors[key].detach()
        if len(names) == 3:
            assert unet is not None
            order, heads = _order(unet), unet.heads_of(len(value) // 3)
            parts = rearrange(value, f"{order} ... -> qkv (h d) ...", qkv=3, h=heads)
        else:
            parts = value[None]
        out |= {name: part.flatten(1) if _LINEAR.search(name) else part for name, part in zip(names, parts, strict=True)}
    if unet is not None and not unet.conv_resample and not unet.resblock_updown:
        for place in places:
            if place.ours.endswith(".resample"):
                width = out[place.theirs.rpartition(".")[0].rpartition(".")[0] + ".resnets.0.conv2.bias"].shape[0]
                down = place.ours.startswith("encoder")
                out |= {f"{place.theirs}.conv.weight": _averaging(width, down), f"{place.theirs}.conv.bias": torch.zeros(width)}
    return out


def _order(unet: UNetConfig) -> str:
    return "(h qkv d)" if unet.attention_order == "head" else "(qkv h d)"


def _averaging(width: int, down: bool) -> Tensor:
    """A 3x3 convolution that averages 2x2 pixels (stride 2, padded by 1) or does nothing."""
    kernel = torch.zeros(3, 3)
    kernel[1:, 1:] = 1 / 4
    if not down:
        kernel = torch.zeros(3, 3)
        kernel[1, 1] = 1
    return torch.einsum("oi,hw->oihw", torch.eye(width), kernel).contiguous()


def to_ours(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], places: list[Place], unet: UNetConfig | None = None
) -> dict[str, Tensor]:
    """Their weights by our names; ``own``: our model's state dict, for names and shapes (values may be on the meta device).

    Raises: ValueError naming their keys that are missing, or have no place.
    """
    given = {}
    for name, value in tensors.items():
        for pattern, replacement in _FORMER:
            name = re.sub(pattern, replacement, name)
        given[name] = value
    names = _names(own, places)
    needed = [name for parts in names.values() for name in parts]
    missing, surplus = [name for name in needed if name not in given], sorted(given.keys() - set(needed))
    for keys, complaint in ((missing, "weights are missing"), (surplus, "weights have no place in this model")):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise ValueError(f"{len(keys)} {complaint}: {', '.join(keys[:5])}{more}")
    out = {}
    for key, parts in names.items():
        values = [_shaped(given[name], own[key], len(parts)) for name in parts]
        if len(parts) == 3 and len({value.shape for value in values}) == 1 and len(values[0]) * 3 == len(own[key]):
            assert unet is not None
            heads = unet.heads_of(len(values[0]))
            out[key] = rearrange(values, f"qkv (h d) ... -> {_order(unet)} ...", h=heads)
        else:
            out[key] = values[0]
    return out


def _shaped(value: Tensor, own: Tensor, parts: int) -> Tensor:
    """With or without axes of length 1, as ours has it; another shape comes back as it is, to be refused with its name."""
    shape = (own.shape[0] // parts, *own.shape[1:])
    same = [side for side in value.shape if side != 1] == [side for side in shape if side != 1]
    return value.reshape(shape) if same else value
