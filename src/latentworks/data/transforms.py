"""From pixels of any size, depth and channel count to squares in [-1, 1] and back: resize, crop, flip."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from numpy.typing import DTypeLike
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from latentworks.config import Config
from latentworks.diffusion.tiling import boxes_within
from latentworks.types import Box

__all__ = ["PLAIN", "Pixels", "Preprocess", "Variant", "Window", "from_tensor", "resize", "resize_shorter", "to_tensor"]

Pixels = Shaped[np.ndarray, "h w c"]
"""An image as it is stored: uint8 or uint16, or float32 in [0, 1]."""


class Variant(NamedTuple):
    """One crop and flip: where the crop lies between its first (0) and its last (below 1) place, and whether it is mirrored after it."""

    y: float
    x: float
    flip: bool = False


PLAIN = Variant(0.5, 0.5)
"""The centre, not mirrored."""


class Window(NamedTuple):
    """The part of an image that a variant shows: upper left corner and size relative to the image's sides, and whether it is mirrored."""

    y: float
    x: float
    height: float
    width: float
    flip: bool = False

    def boxes(self, boxes: Sequence[Box], visible: float = 0.25) -> list[Box]:
        """Boxes as they lie in this part, see `boxes_within`."""
        found = boxes_within(boxes, (self.x, self.y, self.x + self.width, self.y + self.height), visible)
        return [{**box, "x": 1 - box["x"] - box["width"]} for box in found] if self.flip else found

    def labels(self, labels: Shaped[np.ndarray, "h w"], height: int, width: int) -> Shaped[np.ndarray, "height width"]:
        """A label map as it lies in this part, in so many pixels: of each the value at its centre."""
        rows, columns = (
            np.minimum(((start + (np.arange(count) + 0.5) / count * share) * side).astype(np.intp), side - 1)
            for start, share, count, side in zip(self[:2], self[2:4], (height, width), labels.shape, strict=True)
        )
        return np.asarray(labels[rows[:, None], columns[:: -1 if self.flip else 1][None]])


class Preprocess(Config):
    """The shorter side becomes ``size``, then a square of ``crop_size`` (None: ``size``) is cut, at the centre or anywhere; ``flip``
    mirrors half of the images. ``channels``: what the model sees; None: as many as the images have. ``depth``: of what a model draws."""

    size: int = Field(ge=1)
    crop_size: int | None = Field(None, ge=1)
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    channels: int | None = Field(None, ge=1)
    depth: Literal["uint8", "uint16", "float32"] = "uint8"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop_size is not None and self.crop_size > self.size:
            raise ValueError(f"crop_size {self.crop_size} is larger than size {self.size}: make it at most that")
        return self

    @property
    def out_size(self) -> int:
        """Pixels a side of what the model sees."""
        return self.size if self.crop_size is None else self.crop_size

    @property
    def varied(self) -> bool:
        """Whether an image has more than its plain variant."""
        return self.flip or self.crop == "random"

    def whole(self) -> "Preprocess":
        """What a model is measured on: whole squares, nothing left to chance."""
        return self.replace(crop_size=None, crop="center", flip=False)

    def draw(self, generator: torch.Generator) -> Variant:
        """A random variant within the settings; `PLAIN` if they leave nothing to chance."""
        if not self.varied:
            return PLAIN
        y, x, side = torch.rand(3, generator=generator).tolist()
        flip = self.flip and side < 0.5
        return Variant(y, x, flip) if self.crop == "random" else PLAIN._replace(flip=flip)

    def fit(self, image: Pixels) -> Pixels:
        """What every variant is cut from: the resized image; with centre crops, that crop. Raises: ValueError for other channels."""
        if self.channels not in (None, image.shape[2]):
            channels = image.shape[2]
            raise ValueError(f"channels: the image has {channels}, the settings say {self.channels}: set data.channels={channels}")
        resized = resize_shorter(image, self.size)
        return resized if self.crop == "random" else self.cut(resized, PLAIN)

    def cut(self, image: Pixels, variant: Variant) -> Pixels:
        """The square of a variant from what `fit` gave; a view."""
        size = self.out_size
        y, x = (int(place * (side - size + 1)) for place, side in zip(variant[:2], image.shape[:2], strict=True))
        square = image[y : y + size, x : x + size]
        return square[:, ::-1] if variant.flip else square

    def window(self, height: int, width: int, variant: Variant = PLAIN) -> Window:
        """The part of an image of that size which `cut` of `fit` shows."""
        place = variant if self.crop == "random" else PLAIN
        resized = _resized(height, width, self.size)
        y, x = (int(at * (side - self.out_size + 1)) / side for at, side in zip(place[:2], resized, strict=True))
        return Window(y, x, self.out_size / resized[0], self.out_size / resized[1], variant.flip)

    def apply(self, image: Pixels, variant: Variant = PLAIN) -> Float[Tensor, "c h w"]:
        """One variant of one image, in [-1, 1]."""
        return to_tensor(self.cut(self.fit(image), variant)[None])[0]


def resize_shorter(image: Pixels, size: int) -> Pixels:
    """The shorter side becomes ``size``, see `resize`. The image itself if its size is right already."""
    target = _resized(image.shape[0], image.shape[1], size)
    return image if target == image.shape[:2] else resize(image, *target)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """To ``height`` x ``width`` by Pillow's antialiased bicubic filter, each channel for itself; the depth stays.

    Deeper than 8 bits is filtered in float32.
    """
    kept = image.dtype if image.dtype == np.uint8 else np.dtype(np.float32)
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c], kept)) for c in range(image.shape[2])]
    resized = np.stack([np.asarray(channel.resize((width, height), Image.Resampling.BICUBIC)) for channel in channels], axis=-1)
    if image.dtype == np.uint8:
        return resized
    whole = np.issubdtype(image.dtype, np.integer)
    # the filter's negative lobes overshoot at edges
    return (np.rint(resized) if whole else resized).clip(0, _largest(image.dtype)).astype(image.dtype)


def _resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter one is ``size``."""
    short = min(height, width)
    return round(height * size / short), round(width * size / short)


def to_tensor(images: Shaped[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Pixels (uint8, uint16, or float32 in [0, 1]) -> float32 in [-1, 1]."""
    x = rearrange(torch.from_numpy(np.require(images, requirements=["C", "W"])), "b h w c -> b c h w")
    x = x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return x.div_(_largest(images.dtype) / 2).sub_(1)


def from_tensor(x: Float[Tensor, "b c h w"], dtype: DTypeLike = np.uint8) -> Shaped[np.ndarray, "b h w c"]:
    """The inverse of `to_tensor`, on the CPU: values beyond [-1, 1] are clamped, integers rounded."""
    dtype = np.dtype(dtype)
    largest = _largest(dtype)
    pixels = ((rearrange(x.detach().float().cpu(), "b c h w -> b h w c") + 1) * (largest / 2)).clamp(0, largest)
    return np.ascontiguousarray((pixels.round() if np.issubdtype(dtype, np.integer) else pixels).numpy(), dtype)


def _largest(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
