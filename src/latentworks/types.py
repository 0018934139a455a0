"""The words every part shares: a batch of data, a condition in its three routes, a denoiser and a sampling step."""

from collections.abc import Callable
from typing import NamedTuple, Required

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

__all__ = ["Batch", "Box", "Cond", "Denoise", "Gives", "Predict", "RandnLike", "Step"]

RandnLike = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape, dtype and device of its argument; where it comes from is the caller's matter."""

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t ``b c h w``, t ``b``) -> x0 ``b c h w``, with the condition already closed over."""


class Box(TypedDict, total=False):
    """An object in an image: top-left corner and size, relative to the image (0 to 1), its class, and what annotators say of it."""

    x: Required[float]
    y: Required[float]
    width: Required[float]
    height: Required[float]
    label: Required[int | str]
    group: bool  # several objects in one box
    occluded: bool
    depiction: bool  # a drawing or a statue of it
    inside: bool  # seen from within


class Batch(TypedDict, total=False):
    """The fields a data source may give. Images lie in [-1, 1]; every field but the last has the batch as its first axis."""

    index: Int[Tensor, " b"]
    image: Float[Tensor, "b c h w"]
    raw: Float[Tensor, "b r h w"]  # what FirstStage.encode_raw gives, from the latent cache
    latent: Float[Tensor, "b z h w"]  # normalised latent
    text: list[str]
    text_features: Float[Tensor, "b l d"]  # a frozen text encoder's output, cached by unique caption
    tokens: Int[Tensor, "b l"]
    label: Int[Tensor, " b"]
    boxes: list[list[Box]]
    segmentation: Int[Tensor, "b h w"]  # classes of pixels, -1 where there is none
    low_res: Float[Tensor, "b c h w"]
    mask: Shaped[Tensor, "b 1 h w"]  # true or 1: the hole, false or 0: to keep
    masked_image: Float[Tensor, "b c h w"]  # its hole as the model's convention says, see MaskedImageConfig
    size: tuple[int, int]  # height and width of the latent, set by LatentDiffusion.condition


class Gives(NamedTuple):
    """Widths a conditioner adds to each route; 0 means it does not use that route."""

    concat: int = 0
    context: int = 0
    vector: int = 0


class Cond(NamedTuple):
    """Every condition ends in one of three routes; a hybrid simply fills two."""

    concat: Float[Tensor, "b c h w"] | None = None  # joined to the latent along channels
    context: Float[Tensor, "b l d"] | None = None  # keys and values of cross-attention; b tiles l d where each tile has its own
    vector: Float[Tensor, "b e"] | None = None  # added to the time embedding

    @staticmethod
    def join(conds: "list[Cond]") -> "Cond":
        """One condition from several of the same batch: channels, tokens and vectors are each concatenated in order."""
        routes = [[route for route in routes if route is not None] for routes in zip(*conds, strict=True)]
        axes = (1, 1, 1)
        return Cond(*(torch.cat(route, dim=axis) if route else None for route, axis in zip(routes, axes, strict=True)))

    @staticmethod
    def stack(conds: "list[Cond]") -> "Cond":
        """One condition of a larger batch: every route is concatenated along the batch (as guidance needs)."""
        routes = zip(*conds, strict=True)
        return Cond(*(None if route[0] is None else torch.cat(route, dim=0) for route in routes))


Predict = Callable[[Tensor, Tensor, Cond], Tensor]
"""(x_t ``b c h w``, t ``b``, cond) -> x0 ``b c h w``."""


class Step(NamedTuple):
    """One step of a sampler: the new x_t, the x0 it was computed from (a preview), and the t the new x_t belongs to (-1: clean data)."""

    x: Float[Tensor, "b c h w"]
    x0: Float[Tensor, "b c h w"]
    t: int
