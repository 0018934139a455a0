"""Pictures larger than a model was trained for: x0 predicted in overlapping tiles of the latent and blended; sizes are its pixels."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from latentworks.types import Box, Cond, Predict

__all__ = ["areas", "boxes_within", "per_tile", "tiled", "windows"]

Area = tuple[float, float, float, float]
"""x0, y0, x1, y1, relative to the image."""

Window = tuple[int, Float[Tensor, " n"]]
"""Of a tile along one axis: where it starts, and how much each of its pixels counts."""


def tiled(predict: Predict, tile: int, overlap: int) -> Predict:
    """A model that sees tiles of ``tile`` x ``tile`` pixels of its latent, one after the other, and blends the x0 it sees in them.

    ``cond.concat`` is cut like the latent, ``cond.vector`` is every tile's; so is ``cond.context``, unless it is one for each (`per_tile`).
    A latent no larger than a tile is predicted as it is. Raises: ValueError for sizes that are no tiles, or contexts of other tiles.
    """
    _check(tile, overlap)

    def predict_tiles(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        rows, columns = (windows(side, tile, overlap) for side in x_t.shape[2:])
        contexts = cond.context.shape[1] if cond.context is not None and cond.context.dim() == 4 else None
        if contexts not in (None, len(rows) * len(columns)):
            size, cut = f"{x_t.shape[2]}x{x_t.shape[3]}", f"{len(rows)} x {len(columns)}"
            raise ValueError(f"context: {contexts} were given, but a latent of {size} is cut into {cut} tiles: give one for each")
        x0 = torch.zeros_like(x_t)
        for i, ((top, down), (left, across)) in enumerate(product(rows, columns)):
            place = (..., slice(top, top + len(down)), slice(left, left + len(across)))
            concat = None if cond.concat is None else cond.concat[place]
            context = cond.context if cond.context is None or contexts is None else cond.context[:, i]
            x0[place] += predict(x_t[place], t, Cond(concat, context, cond.vector)) * torch.outer(down, across).to(x_t)
        return x0

    return predict_tiles


def windows(size: int, tile: int, overlap: int) -> list[Window]:
    """The tiles along an axis, evenly spread, the last one ending with it; at every pixel their weights add up to 1.

    Neighbours share at least ``overlap`` pixels, over which one fades into the other as sin^2 into cos^2: flat at both ends, so that the
    border of a tile, where a network sees the end of the world, counts least. Raises: ValueError.
    """
    _check(tile, overlap)
    if size <= tile:
        return [(0, torch.ones(size))]
    n = math.ceil((size - overlap) / (tile - overlap))
    starts = [round(i * (size - tile) / (n - 1)) for i in range(n)]
    weights = [torch.ones(tile) for _ in starts]
    for i in range(1, n):
        shared = starts[i - 1] + tile - starts[i]
        rise = torch.sin((torch.arange(shared) + 0.5) / max(shared, 1) * math.pi / 2).square()
        weights[i][:shared] *= rise
        weights[i - 1][tile - shared :] *= rise.flip(0)
    total = torch.zeros(size)  # 1, except where three tiles meet
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    return [(start, weight / total[start : start + tile]) for start, weight in zip(starts, weights, strict=True)]


def areas(size: tuple[int, int], tile: int, overlap: int, image: tuple[float, float] | None = None) -> list[Area]:
    """The tiles of ``size`` (height, width), in the order of `tiled`, relative to an ``image`` at its top left that may be smaller."""
    height, width = image or size
    rows, columns = ([(start, start + len(weights)) for start, weights in windows(side, tile, overlap)] for side in size)
    return [(x0 / width, y0 / height, x1 / width, y1 / height) for (y0, y1), (x0, x1) in product(rows, columns)]


def per_tile(conds: Sequence[Cond]) -> Cond:
    """One condition for `tiled` out of one for each tile, in the order of `areas`: contexts become b tiles l d, the rest is the first's.

    It stacks and guides like any other.
    """
    contexts = [cond.context for cond in conds if cond.context is not None]
    return conds[0]._replace(context=torch.stack(contexts, dim=1) if contexts else None)


def boxes_within(boxes: Sequence[Box], area: Area, visible: float = 0.25) -> list[Box]:
    """The boxes of an image as an area of it shows them: relative to the area and cut at its edges.

    A box stays if at least the share ``visible`` of it is in the area, or if it takes up that share of the area.
    """
    x0, y0, x1, y1 = area
    seen: list[Box] = []
    for box in boxes:
        left, right = max(box["x"], x0), min(box["x"] + box["width"], x1)
        top, bottom = max(box["y"], y0), min(box["y"] + box["height"], y1)
        inside = max(right - left, 0.0) * max(bottom - top, 0.0)
        if inside > 0 and inside >= visible * min(box["width"] * box["height"], (x1 - x0) * (y1 - y0)):
            x, y, width, height = (left - x0) / (x1 - x0), (top - y0) / (y1 - y0), (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
            seen.append({**box, "x": x, "y": y, "width": width, "height": height})
    return seen


def _check(tile: int, overlap: int) -> None:
    if tile < 1:
        raise ValueError(f"tile: {tile} is not possible: use the size the model was trained at")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap: {overlap} is not possible with tiles of {tile}: use 0 to {tile - 1}, half the tile for example")
