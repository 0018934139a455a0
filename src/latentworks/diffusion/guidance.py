"""Guidance: functions that make one denoiser out of others, so they stack: networks are never changed or trained for it.

The order in one call, from the inside: `classifier_free` (of a tiled ``predict``, where it is tiled), `classifier`, `image`,
`known_pixels`. All act on x0, and on each image for itself: the gradients are of sums over images.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentworks.diffusion.process import Process
from latentworks.types import Cond, Denoise, Predict, RandnLike

__all__ = ["LogProb", "LossOfX0", "classifier", "classifier_free", "descend", "image", "known_pixels"]

LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t ``b c h w``, t ``b``) -> log p(y | x_t) ``b``, differentiable in x_t."""

LossOfX0 = Callable[[Tensor], Tensor]
"""x0 ``b c h w`` -> a loss for each image ``b``, differentiable in x0."""


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


def classifier(denoise: Denoise, log_prob: LogProb, process: Process, scale: float) -> Denoise:
    """x0 + scale sigma^2 / alpha grad_{x_t} log p(y | x_t), with a classifier of noisy latents (Eq. 16, arXiv:2112.10752).

    The same as eps - scale sigma grad: the paper prints a plus, the score identity and arXiv:2105.05233 (Algorithm 2) have a minus. Scale 1
    is Bayes' rule. Scale 0 is ``denoise`` itself. Raises: ValueError for another scale than finite and at least 0, for a ``log_prob`` that
    is not one value an image, and for a gradient that is not finite.
    """
    _check_scale("classifier guidance", scale)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (grad,) = torch.autograd.grad(_sum(log_prob(x, t), x, "log_prob"), x)
        return denoise(x_t, t) + scale * _per_gradient(process, t) * _finite(grad, t, "classifier guidance", scale)

    return guided if scale else denoise


def image(denoise: Denoise, loss_of_x0: LossOfX0, process: Process, scale: float, noise: float | None = None) -> Denoise:
    """x0 - scale sigma^2 / alpha grad_{x_t} loss(x0(x_t)): a model without condition follows an image (appendix C, arXiv:2112.10752).

    With -loss for log p(y | x_t) this is `classifier`, but through the denoiser: the paper's Gaussian guider, Eq. 17, is half the sum of
    squares at scale 1. The sign is minus, where Eq. 16 prints a plus that would climb the error. Gradients are on inside, whatever the
    caller has; where the caller has them on too (one `image` in another), the inner gradient counts as constant. Scale 0 is ``denoise``
    itself. ``noise``, the standard deviation that is believed in what guides, divides the gradient by noise^2 + sigma^2 / (alpha^2 +
    sigma^2), the second being the variance of x0 that x_t leaves, for data of unit variance (pseudo-inverse guidance, openreview
    9_gsMA8MRKQ): firm near the end, where that variance is small, and never violent before. Raises: as `classifier`.
    """
    _check_scale("image guidance", scale)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        outer = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x_t if x_t.requires_grad else x_t.detach().requires_grad_()
            x0 = denoise(x, t)
            (grad,) = torch.autograd.grad(_sum(loss_of_x0(x0), x, "loss_of_x0"), x, retain_graph=outer)
        step = scale * _per_gradient(process, t) / (1.0 if noise is None else noise**2 + _left(process, t))
        return (x0 if outer else x0.detach()) - step * _finite(grad, t, "image guidance", scale)

    return guided if scale else denoise


def descend(x0: Float[Tensor, "b c h w"], loss_of_x0: LossOfX0, steps: int) -> Float[Tensor, "b c h w"]:
    """x0 after ``steps`` of steepest descent of the loss, without the network: what `image` leaves of the error once drawing is over.

    The backward guidance of arXiv:2302.07121, taken once, at the end. Each image has its own step length: the minimum of the parabola
    through the loss, its slope and its value where a straight line would reach 0. A step that does not lower the loss is not taken.
    """
    for _ in range(steps):
        with torch.enable_grad():
            x = x0.detach().requires_grad_()
            loss = loss_of_x0(x)
            (grad,) = torch.autograd.grad(_sum(loss, x, "loss_of_x0"), x)
        with torch.no_grad():
            slope = grad.square().sum(dim=(1, 2, 3))
            probe = loss / slope
            curvature = 2 * (loss_of_x0(x - probe.view(-1, 1, 1, 1) * grad) - loss + probe * slope) / probe**2
            length = torch.where(curvature > 0, torch.minimum(slope / curvature, 2 * probe), 2 * probe)
            moved = x - length.view(-1, 1, 1, 1) * grad
            x0 = torch.where((loss_of_x0(moved) < loss).view(-1, 1, 1, 1), moved, x)  # false too where the loss was 0 already
    return x0.detach()


def known_pixels(
    denoise: Denoise, known: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b 1 h w"], process: Process, randn_like: RandnLike
) -> Denoise:
    """Inpainting with a model not trained to (imputation, appendix I.2 of arXiv:2011.13456): ``mask`` is true where to draw.

    Two replacements where the mask is false: ``denoise`` sees the known latent with fresh noise of step t instead of x_t, and the x0 it
    gives becomes the known latent. So the hole is denoised beside a sample of q(x_t | known), and any sampler ends in the known latent. The
    sampler's own x is left to it. `repaint` also goes back and forth. Raises: ValueError where known or mask do not fit x_t.
    """

    def replaced(x_t: Tensor, t: Tensor) -> Tensor:
        if known.shape != x_t.shape or mask.shape != (len(x_t), 1, *x_t.shape[2:]):
            shapes = f"known is {tuple(known.shape)}, mask {tuple(mask.shape)}, x_t {tuple(x_t.shape)}"
            raise ValueError(f"known pixels: {shapes}: give a latent of x_t's shape, and a mask of one channel")
        x_t = torch.where(mask, x_t, process.add_noise(known, randn_like(x_t), t).to(x_t.dtype))
        return torch.where(mask, denoise(x_t, t), known)

    return replaced


def _check_scale(what: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"{what} scale: {scale} is not possible: use 0 for none, a finite number above it for more")


def _sum(values: Tensor, x: Tensor, what: str) -> Tensor:
    """The sum of one value an image: its gradient at an image is that of the image's own value, whatever the batch."""
    if values.shape != (len(x),):
        raise ValueError(f"{what}: it gave shape {tuple(values.shape)} for {len(x)} images: give one value an image, shape ({len(x)},)")
    return values.sum()


def _per_gradient(process: Process, t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """sigma^2 / alpha: how far a unit of a gradient at x_t moves x0. 0 where x_t is noise only (zero terminal SNR) and tells nothing."""
    alpha, sigma = process.at(t)
    return torch.where(alpha > 0, sigma**2 / alpha, torch.zeros_like(alpha))


def _left(process: Process, t: Int[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """The variance of x0 given x_t, for data of unit variance."""
    alpha, sigma = process.at(t)
    return sigma**2 / (alpha**2 + sigma**2)


def _finite(grad: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], what: str, scale: float) -> Float[Tensor, "b c h w"]:
    """The gradient itself. Raises: ValueError naming the first image and step where it is not finite."""
    bad = (~grad.isfinite()).flatten(1).any(dim=1)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(f"{what}: the gradient of image {i} at t = {int(t[i])} is not finite: use a scale below {scale}, or more steps")
    return grad
