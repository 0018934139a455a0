"""Guiding by an image: from settings and an image to the loss that `diffusion.guidance.image` descends (appendix C, arXiv:2112.10752), and
from an image with a hole to the latent that `known_pixels` and `repaint` keep."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from latentworks.config import Config
from latentworks.diffusion.guidance import LossOfX0
from latentworks.first_stage.base import FirstStage
from latentworks.nn.perceptual import EfficientNetPerceptual

__all__ = ["Distance", "Guide", "ImageGuidanceConfig", "image_loss", "known_latent"]

Guide = Literal["identity", "down", "grey", "mask"]
Distance = Literal["l2", "perceptual"]

CELL = 16
"""Pixels a side of what the coarsest stage of the perceptual distance compares."""

LUMA = (0.299, 0.587, 0.114)
"""Grey of red, green and blue (ITU-R BT.601), as Pillow's mode L."""


class ImageGuidanceConfig(Config):
    """What of a sample should be like the image, T in the paper's Eq. 17, and what "like" means.

    ``guide``: "identity", all of it; "down", its bicubic reduction to the image's size; "grey", without colour; "mask", what is outside a
    hole. ``distance``: "l2", half the sum of squares (the paper's Gaussian guider), or "perceptual", EfficientNet-Lite1's distance times
    the image's number of cells of 16 x 16 pixels, its coarsest stage's, so that both grow with the image. ``scale`` multiplies it.
    ``noise``: the standard deviation, in pixels of [-1, 1], with which the image is believed; the smaller, the closer samples follow it
    (see `diffusion.guidance.image`). None is the paper's guider.
    """

    guide: Guide = "identity"
    distance: Distance = "l2"
    scale: float = Field(1.0, ge=0, allow_inf_nan=False)
    noise: float | None = Field(None, gt=0, allow_inf_nan=False)


def image_loss(
    config: ImageGuidanceConfig,
    first_stage: FirstStage,
    image: Float[Tensor, "b c h w"],
    size: tuple[int, int],
    mask: Bool[Tensor, "b 1 H W"] | None = None,
) -> LossOfX0:
    """How far T(D(x0)) is from T(image), one value an image, for samples of ``size`` (height, width); through `FirstStage.decode`.

    Where latents decode to more than ``size``, as a size that f does not divide is padded, what is beyond is left to the model.
    ``image`` is in [-1, 1], one for all samples or one each; already reduced for "down", else of the samples' size; for "grey" one channel
    is enough. ``mask``, for "mask", is true in the hole. The scale is not applied here. Raises: ValueError for an image or mask that does
    not fit, before anything is computed.
    """
    _check(config, first_stage, image, size, mask)
    perceptual = EfficientNetPerceptual().to(image.device) if config.distance == "perceptual" else None
    luma = torch.tensor(LUMA, device=image.device).view(3, 1, 1)

    def view(x: Tensor) -> Tensor:
        """T; it leaves an image that is reduced, or grey, as it is."""
        if config.guide == "down":
            return F.interpolate(x, image.shape[2:], mode="bicubic", antialias=True)
        if config.guide == "grey" and x.shape[1] == 3:
            return (luma * x).sum(dim=1, keepdim=True)
        return x if mask is None else x.masked_fill(mask, 0)

    target = view(image.float())

    def loss_of_x0(x0: Tensor) -> Tensor:
        seen = view(first_stage.decode(x0)[..., : size[0], : size[1]].float())
        if perceptual is None:
            return (seen - target).square().sum(dim=(1, 2, 3)) / 2
        distance: Tensor = perceptual(seen, target.expand_as(seen))
        return seen[0, 0].numel() / CELL**2 * distance

    return loss_of_x0


def known_latent(
    first_stage: FirstStage, image: Float[Tensor, "b c H W"], hole: Bool[Tensor, "b 1 H W"]
) -> tuple[Float[Tensor, "b z h w"], Bool[Tensor, "b 1 h w"]]:
    """The latent of an image outside its hole, and which of its values belong to the hole: those with any pixel there.

    The hole is filled with the mean of the rest, for each channel, so that nothing of what was there shows through the encoder.
    """
    mean = image.masked_fill(hole, 0).sum(dim=(2, 3), keepdim=True) / (~hole).sum(dim=(2, 3), keepdim=True).clamp(min=1)
    latent = first_stage.to_latent(first_stage.encode_raw(torch.where(hole, mean, image)))
    return latent, F.max_pool2d(hole.float(), first_stage.factor) > 0


def _check(
    config: ImageGuidanceConfig, first_stage: FirstStage, image: Tensor, size: tuple[int, int], mask: Bool[Tensor, "b 1 H W"] | None
) -> None:
    (height, width), (h, w), channels = size, image.shape[2:], first_stage.in_channels
    sizes = f"the image has {w}x{h} pixels, the samples {width}x{height}"
    if config.guide == "down":
        if height * w != width * h or h >= height:
            raise ValueError(f"guide: {sizes}: for 'down' give a smaller image of the same proportions")
    elif (h, w) != (height, width):
        raise ValueError(f"guide: {sizes}: make them equal, or use 'down' with a smaller image")
    if config.guide == "grey" and channels != 3:
        raise ValueError(f"guide: 'grey' is of red, green and blue, and this model draws {channels} channels: use 'identity' or 'down'")
    if image.shape[1] not in {channels, 1 if config.guide == "grey" else channels}:
        raise ValueError(f"guide: the image has {image.shape[1]} channels, this model draws {channels}: give an image of {channels}")
    if config.distance == "perceptual" and channels not in (1, 3):
        raise ValueError(f"guide distance: 'perceptual' sees 1 or 3 channels, and this model draws {channels}: use 'l2'")
    if (mask is not None) != (config.guide == "mask"):
        raise ValueError("guide: 'mask' needs a mask, and nothing else takes one: give one with 'mask', or leave it out")
    if mask is not None and tuple(mask.shape[2:]) != size:
        raise ValueError(f"mask: it has {mask.shape[3]}x{mask.shape[2]} pixels, the samples {width}x{height}: make them equal")
