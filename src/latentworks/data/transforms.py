"""From pixels of any size, depth and channel count to squares in [-1, 1] and back: resize, crop, flip."""

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

__all__ = ["PLAIN", "Pixels", "Preprocess", "Variant", "from_tensor", "resize", "resize_shorter", "to_tensor"]

Pixels = Shaped[np.ndarray, "h w c"]
"""An image as it is stored: uint8 or uint16, or float32 in [0, 1]."""


class Variant(NamedTuple):
    """One crop and flip: where the crop lies between its first (0) and its last (below 1) place, and whether it is mirrored after it."""

    y: float
    x: float
    flip: bool = False


PLAIN = Variant(0.5, 0.5)
"""The centre, not mirrored."""


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

    def apply(self, image: Pixels, variant: Variant = PLAIN) -> Float[Tensor, "c h w"]:
        """One variant of one image, in [-1, 1]."""
        return to_tensor(self.cut(self.fit(image), variant)[None])[0]


def resize_shorter(image: Pixels, size: int) -> Pixels:
    """The shorter side becomes ``size``, see `resize`. The image itself if its size is right already."""
    height, width = image.shape[:2]
    short = min(height, width)
    return image if short == size else resize(image, round(height * size / short), round(width * size / short))


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


def to_tensor(images: Shaped[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
    """Pixels (uint8, uint16, or float32 in [0, 1]) -> float32 in [-1, 1]."""
    x = rearrange(torch.from_numpy(np.ascontiguousarray(images)), "b h w c -> b c h w")
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
