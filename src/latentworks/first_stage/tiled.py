"""A first stage run tile by tile: the image that the whole would give, with the memory of a tile, of the image and of the latent.

Two things make a part of a picture depend on all of it. Convolutions look a little further at every layer: a tile is read with a rim as
wide as they look in all, which is cut off afterwards; tiles so meet without a seam, and there is nothing to blend. GroupNorm takes mean
and variance over the whole picture: tiles share those. They are found in one pass over the tiles for each norm, up to that norm, those
before it being known. So memory is paid for with time: decoding takes six times as long as the whole in the bundled model (two
blocks a level in its decoder), longer where there are more.

What is at the latent's resolution is run as a whole, as attention over all pixels must be; where there is attention at a finer one
(kl-f32 has it at twice the latent's), everything up to it is.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentworks.first_stage.autoencoder import Chain, Encoder, Run, through
from latentworks.nn.attention import AttnBlock, LinearAttnBlock
from latentworks.nn.blocks import Downsample, Norm, ResnetBlock, Upsample

__all__ = ["in_tiles", "reach"]


class Span(NamedTuple):
    """A tile along one axis, in pixels of the latent: ``first`` to ``last`` of the image, read with a rim from ``start`` to ``stop``."""

    start: int
    first: int
    last: int
    stop: int


class Tile(NamedTuple):
    """A tile, its rows and its columns. Tensors may have ``scale`` pixels for one of the latent."""

    rows: Span
    columns: Span

    def read(self, x: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h2 w2"]:
        """The tile of a whole, with its rim."""
        rows, columns = (slice(span.start * scale, span.stop * scale) for span in self)
        return x[:, :, rows, columns]

    def without_rim(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """What became of the tile, the rim cut off."""
        scale = self.scale(h)
        rows, columns = (slice((span.first - span.start) * scale, (span.last - span.start) * scale) for span in self)
        return h[:, :, rows, columns]

    def put(self, out: Float[Tensor, "b c h w"], h: Float[Tensor, "b c h2 w2"]) -> None:
        """Write what became of the tile into a whole."""
        rows, columns = (slice(span.first * self.scale(h), span.last * self.scale(h)) for span in self)
        out[:, :, rows, columns] = self.without_rim(h)

    def scale(self, h: Float[Tensor, "b c h w"]) -> int:
        """Of what became of the tile."""
        return h.shape[3] // (self.columns.stop - self.columns.start)


class Moments(NamedTuple):
    """Of a norm's input, for each image and group."""

    mean: Float[Tensor, "b g"]
    var: Float[Tensor, "b g"]


Shared = dict[nn.GroupNorm, Moments]


def in_tiles(tile: int) -> Run:
    """How to run a first stage in tiles of at most ``tile`` x ``tile`` pixels of the latent: ``decode(z, in_tiles(64))``.

    Without gradients. Raises: ValueError for a size that is none.
    """
    if tile < 1:
        raise ValueError(f"tile: {tile} pixels of the latent are none: use 1 or more, 64 for example")

    @torch.no_grad()
    def run(chain: Chain, x: Tensor) -> Tensor:
        parts = chain.parts()
        coarse = [i for i, part in enumerate(parts) if isinstance(part, AttnBlock | LinearAttnBlock)]
        if isinstance(chain, Encoder):
            downs = [i + 1 for i, part in enumerate(parts) if isinstance(part, Downsample)]
            cut = min([*coarse, max(downs, default=0)])
            return through(parts[cut:], _tiled(parts[:cut], x, 2 ** len(downs), tile))
        ups = [i for i, part in enumerate(parts) if isinstance(part, Upsample)]
        cut = max([*(i + 1 for i in coarse), min(ups, default=len(parts))])
        h = through(parts[:cut], x)
        return _tiled(parts[cut:], h, h.shape[3] // x.shape[3], tile)

    return run


def reach(parts: list[nn.Module]) -> int:
    """How far the parts look beyond the place of an output, in pixels of their input."""
    pixels = 0
    for part in reversed(parts):
        match part:
            case nn.Conv2d():
                pixels += part.kernel_size[0] // 2
            case ResnetBlock():
                pixels += 2
            case Upsample():
                pixels = ceil((pixels + 1) / 2)
            case Downsample():
                pixels = 2 * pixels + 1
    return pixels


def _tiled(parts: list[nn.Module], x: Float[Tensor, "b c h w"], scale: int, tile: int) -> Float[Tensor, "b o h2 w2"]:
    """``x``, which has ``scale`` pixels for one of the latent, through ``parts``."""
    size = [side // scale for side in x.shape[2:]]
    if max(size) <= tile:
        return through(parts, x)
    shared: Shared = {}
    norm = partial(_normalise, shared)
    for i, part in enumerate(parts):
        rim = ceil(reach(parts[: i + 1]) / scale)
        for layer, before in _norms(part):
            inputs = (place.without_rim(before(through(parts[:i], place.read(x, scale), norm), norm)) for place in _tiles(size, tile, rim))
            shared[layer] = _moments(inputs, layer.num_groups)
    out: Tensor | None = None
    for place in _tiles(size, tile, ceil(reach(parts) / scale)):
        h = through(parts, place.read(x, scale), norm)
        out = h.new_empty(*h.shape[:2], *(side * place.scale(h) for side in size)) if out is None else out
        place.put(out, h)
    assert out is not None
    return out


def _norms(part: nn.Module) -> list[tuple[nn.GroupNorm, Callable[[Tensor, Norm], Tensor]]]:
    """The norms of a part in order, and what each takes when the part takes ``h``."""
    match part:
        case ResnetBlock():
            return [(part.norm1, lambda h, norm: h), (part.norm2, part.first_half)]
        case nn.GroupNorm():
            return [(part, lambda h, norm: h)]
        case _:
            return []


def _tiles(size: list[int], tile: int, rim: int) -> Iterator[Tile]:
    """Tiles of nearly equal size that cover the latent without a remainder."""
    rows, columns = (_spans(side, tile, rim) for side in size)
    return (Tile(row, column) for row in rows for column in columns)


def _spans(size: int, tile: int, rim: int) -> list[Span]:
    n = ceil(size / tile)
    cuts = [round(i * size / n) for i in range(n + 1)]
    return [Span(max(first - rim, 0), first, last, min(last + rim, size)) for first, last in pairwise(cuts)]


def _moments(tiles: Iterator[Float[Tensor, "b c _ _"]], groups: int) -> Moments:
    """Of a whole, from its tiles; added up in float64."""
    pixels, total, squares = 0, torch.zeros(()), torch.zeros(())
    for h in tiles:
        var, mean = torch.var_mean(h.float().reshape(len(h), groups, -1), dim=2, correction=0)
        n, device = h.shape[2] * h.shape[3], h.device
        var, mean = var.cpu().double(), mean.cpu().double()  # not every device has float64
        pixels, total, squares = pixels + n, total + n * mean, squares + n * (var + mean.square())
    mean, square = total / pixels, squares / pixels
    return Moments(*(value.to(device, torch.float32) for value in (mean, square - mean.square())))


def _normalise(shared: Shared, layer: nn.GroupNorm, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """GroupNorm with known moments: one multiplication and one addition."""
    mean, var = (value.repeat_interleave(layer.num_channels // layer.num_groups, dim=1) for value in shared[layer])  # b c
    scale = layer.weight * torch.rsqrt(var + layer.eps)
    shift = layer.bias - mean * scale
    return torch.addcmul(shift[:, :, None, None], h.float(), scale[:, :, None, None]).to(h.dtype)
