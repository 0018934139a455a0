"""Guidance: functions that make one denoiser out of others."""

import math

import torch
from torch import Tensor

from latentworks.types import Cond, Denoise, Predict

__all__ = ["classifier_free"]


def classifier_free(predict: Predict, cond: Cond, uncond: Cond, scale: float) -> Denoise:
    """x0_u + scale (x0_c - x0_u), from one doubled batch [uncond, cond] (arXiv:2207.12598).

    At a fixed x_t, x0 is affine in eps and in v, so guiding x0 is guiding eps. A negative prompt is simply another ``uncond``. Scale 1 is
    plain conditional prediction and costs one forward of the batch as it is. Raises: ValueError when the two conditions differ in kind.
    """
    if not math.isfinite(scale):
        raise ValueError(f"guidance scale: {scale} is not a finite number: use 1 for none, 2 to 10 for more")
    for route, c, u in zip(Cond._fields, cond, uncond, strict=True):
        if (None if c is None else c.shape) != (None if u is None else u.shape):
            shapes = " and ".join("none" if r is None else str(tuple(r.shape)) for r in (c, u))
            raise ValueError(f"cond and uncond differ in {route} ({shapes}): make both with the same conditioner and batch size")
    both = Cond.stack([uncond, cond])

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        if scale == 1:
            return predict(x_t, t, cond)
        x0_uncond, x0_cond = predict(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return x0_uncond + scale * (x0_cond - x0_uncond)

    return denoise
