"""Measures of a reconstruction against its image, one value an image, and of how a codebook is used."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

__all__ = ["CodebookUse", "codebook_use", "psnr", "psnr_non_white", "ssim"]

WHITE = 250 / 255  # a pixel with a channel below this share of the range is not white


def psnr(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], *, data_range: float = 2.0) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image in dB; equal images give inf. A set's figure is the mean of these values.

    ``data_range``: 2 for images in [-1, 1], 255 for 8-bit values. Nothing is clamped: clamp a reconstruction first.
    """
    return _decibels((x.double() - reference.double()).square().mean(dim=(1, 2, 3)), data_range)


def psnr_non_white(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """As `psnr` for images in [-1, 1], over the pixels where the reference is not white; nan for an image that is all white.

    On pictures drawn on white the plain figure mostly says how white the paper is.
    """
    kept: Bool[Tensor, "b h w"] = (reference < 2 * WHITE - 1).any(dim=1)
    errors = (x.double() - reference.double()).square().mean(dim=1)
    return _decibels((errors * kept).sum(dim=(1, 2)) / kept.sum(dim=(1, 2)), 2.0)


def _decibels(error: Tensor, data_range: float) -> Float[Tensor, " b"]:
    return (10 * torch.log10(data_range**2 / error)).float()


def ssim(x: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Structural similarity of each image in [-1, 1] (Gaussian window, sigma 1.5, borders reflected), through torchmetrics.

    It is taken on [0, 1], as everywhere: its luminance term has no meaning for negative values. Raises: ValueError without torchmetrics.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ValueError("SSIM needs torchmetrics: pip install 'latentworks[measure]'") from None
    values: Tensor = structural_similarity_index_measure((x + 1) / 2, (reference + 1) / 2, data_range=1.0, reduction="none")
    return values.reshape(len(x))


class CodebookUse(NamedTuple):
    """``fraction`` of codes used at all; ``perplexity`` exp(entropy): as many codes, used equally, would be as varied."""

    fraction: float
    perplexity: float


def codebook_use(counts: Shaped[Tensor, " codes"]) -> CodebookUse:
    """From how often each code was chosen. Raises: ValueError if none was."""
    total = counts.sum()
    if total == 0:
        raise ValueError("counts are all 0: no code was chosen yet; count over at least one image")
    share = counts.double() / total
    entropy = -torch.special.xlogy(share, share).sum()
    return CodebookUse(float((counts > 0).double().mean()), float(entropy.exp()))
