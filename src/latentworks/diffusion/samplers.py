"""Samplers: plain generators that turn a denoiser and a list of timesteps into a sequence of steps from noise to data.

All take ``(denoise, x, process, timesteps, randn_like)``: x is float32 noise ``b c h w`` at ``timesteps[0]``; ``timesteps`` (see
`Process.timesteps`) lists where to evaluate and, last, where to stop. Each yields one `Step` for every value after the first (`repaint`,
which goes to and fro: for every step towards the data). Mistakes raise ValueError, naming the sampler, when the first step is asked for.
Coefficients are Python floats (float64), so x keeps its dtype. To stop early, stop iterating.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentworks.diffusion.process import Process
from latentworks.types import Denoise, RandnLike, Step

__all__ = ["JUMP", "RESAMPLE", "SAMPLERS", "Sampler", "ddim", "dpmpp_2m", "plms", "repaint", "unipc", "walk"]

Sampler = Callable[..., Iterator[Step]]

JUMP, RESAMPLE = 10, 10
"""Steps that `repaint` goes back, and how often it then has taken them: the paper's."""

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ddim(
    denoise: Denoise,
    x: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[int],
    randn_like: RandnLike,
    *,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Eq. 12 and 16, arXiv:2010.02502. eta 0: deterministic, first order; eta 1: ancestral sampling, DDPM if no t is left out."""
    _check("ddim", timesteps, process)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: {eta} is not possible for the sampler ddim: use 0 (deterministic) to 1 (as much noise as DDPM)")
    for t, t_next in pairwise(timesteps):
        x0 = denoise(x, _filled(x, t))
        x, fresh = _ddim_step(process, x, x0, t, t_next, eta)
        if fresh > 0:
            x = x + fresh * randn_like(x)
        yield Step(x, x0, t_next)


def plms(
    denoise: Denoise, x: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[int], randn_like: RandnLike
) -> Iterator[Step]:
    """Pseudo linear multistep, arXiv:2202.09778, as the authors': DDIM's step with Adams-Bashforth averages of eps, up to four.

    The first step is a pseudo improved Euler step with two evaluations, unless it is also the last.
    """
    _check("plms", timesteps, process)
    if process.level(timesteps[0])[0] == 0:
        raise ValueError(f"plms cannot start at t = {timesteps[0]}, where eps says nothing of x0 (zero terminal SNR): use ddim or unipc")
    past: list[Tensor] = []  # eps of earlier steps, newest first
    for t, t_next in pairwise(timesteps):
        (alpha, sigma), (alpha_next, sigma_next) = process.level(t), process.level(t_next)
        eps = (x - alpha * denoise(x, _filled(x, t))) / sigma
        if past or t_next == timesteps[-1]:
            mean = sum((w * e for w, e in zip(_ADAMS_BASHFORTH[len(past)], [eps, *past], strict=True)), torch.zeros_like(x))
        else:
            euler = alpha_next * (x - sigma * eps) / alpha + sigma_next * eps
            mean = (eps + (euler - alpha_next * denoise(euler, _filled(x, t_next))) / sigma_next) / 2
        past = [eps, *past][:3]
        x0 = (x - sigma * mean) / alpha
        x = alpha_next * x0 + sigma_next * mean
        yield Step(x, x0, t_next)


def dpmpp_2m(
    denoise: Denoise, x: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[int], randn_like: RandnLike
) -> Iterator[Step]:
    """DPM-Solver++(2M), Algorithm 2 of arXiv:2211.01095: deterministic, second order, one evaluation a step.

    The last step is first order with fewer than 15 steps, for stability, and where it ends in clean data.
    """
    _check("dpmpp_2m", timesteps, process)
    steps = len(timesteps) - 1
    x0_old = x
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        x0 = denoise(x, _filled(x, t))
        first_order = i == 0 or (i == steps - 1 and (steps < 15 or t_next == -1))
        x = _hold(process, x, t, t_next, x0 if first_order else _extrapolate(process, x0, x0_old, timesteps[i - 1 : i + 2]))
        x0_old = x0
        yield Step(x, x0, t_next)


def unipc(
    denoise: Denoise, x: Float[Tensor, "b c h w"], process: Process, timesteps: Sequence[int], randn_like: RandnLike
) -> Iterator[Step]:
    """UniPC-2 on x0 with B(h) = e^h - 1, arXiv:2302.04867: deterministic, one evaluation a step.

    Each evaluation serves twice: it corrects the step that led to it (UniC) and predicts the next (UniP). The last prediction is
    first order and is not corrected, as that would take one more evaluation.
    """
    _check("unipc", timesteps, process)
    past: list[tuple[Tensor, Tensor]] = []  # (corrected x, x0) of the last two steps, newest first
    for i, (t, t_next) in enumerate(pairwise(timesteps)):
        x0 = denoise(x, _filled(x, t))
        if past:
            x_old, x0_old = past[0]
            mean = (x0_old + x0) / 2 if len(past) == 1 else _interpolate(process, x0, x0_old, past[1][1], timesteps[i - 2 : i + 1])
            x = _hold(process, x_old, timesteps[i - 1], t, mean)
        past = [(x, x0), *past][:2]
        first_order = i == 0 or t_next == timesteps[-1]
        x = _hold(process, x, t, t_next, x0 if first_order else _extrapolate(process, x0, past[1][1], timesteps[i - 1 : i + 2]))
        yield Step(x, x0, t_next)


def repaint(
    denoise: Denoise,
    x: Float[Tensor, "b c h w"],
    process: Process,
    timesteps: Sequence[int],
    randn_like: RandnLike,
    *,
    known: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b 1 h w"],
    jump: int = JUMP,
    resample: int = RESAMPLE,
) -> Iterator[Step]:
    """RePaint, Algorithm 1 of arXiv:2201.09865: fills the hole (``mask`` true) of ``known`` with a model not trained to.

    Ancestral steps (`ddim` with eta 1), after each of which what is known is put back with the noise of its level. Every ``jump`` steps it
    goes back as many, ``resample`` - 1 times, so that hole and surroundings come to agree: see `walk`. Line 5 of the algorithm scales the
    noise by the variance; here it is its root, as in Eq. 8a and the authors' code. One draw serves both regions, which share no value.
    """
    _check("repaint", timesteps, process)
    for t, t_next in pairwise(walk(timesteps, jump, resample)):
        alpha_next, sigma_next = process.level(t_next)
        if t_next > t:  # line 10, over all steps of the process between the two
            ratio = alpha_next / process.level(t)[0]
            x = ratio * x + math.sqrt(1 - ratio**2) * randn_like(x)
            continue
        x0 = torch.where(mask, denoise(x, _filled(x, t)), known)
        drawn, fresh = _ddim_step(process, x, x0, t, t_next, eta=1.0)
        noise = randn_like(x)
        x = torch.where(mask, drawn + fresh * noise, alpha_next * known + sigma_next * noise)
        yield Step(x, x0, t_next)


def walk(timesteps: Sequence[int], jump: int, resample: int) -> list[int]:
    """The values of t that `repaint` goes through, down and up: down to each of every ``jump`` values, then ``resample`` - 1 times up and
    down again (Fig. 9, arXiv:2201.09865). It never comes back from the last value. Raises: ValueError for what does not fit."""
    steps = len(timesteps) - 1
    if resample < 1:
        raise ValueError(f"resample: {resample} is not possible for the sampler repaint: use 1 (never go back) or more")
    if jump < 1 or (resample > 1 and jump >= steps):
        raise ValueError(f"jump: the sampler repaint cannot go back {jump} of {steps} steps: use fewer, at least 1, or more steps")
    places: list[int] = []
    for place in range(steps, 0, -1):  # counted from the last value, which is 0
        places.append(place)
        if (place - 1) % jump == 0 and place + jump <= steps:
            places += [*range(place + 1, place + jump + 1), *range(place + jump - 1, place - 1, -1)] * (resample - 1)
    return [timesteps[steps - place] for place in [*places, 0]]


SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(ddim, eta=1.0),
    "ddim": ddim,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
}


def _check(name: str, timesteps: Sequence[int], process: Process) -> None:
    if len(timesteps) < 2:
        raise ValueError(f"timesteps: {name} needs at least a start and a stop, got {list(timesteps)}: use process.timesteps(steps)")
    if any(later >= earlier for earlier, later in pairwise(timesteps)):
        raise ValueError(f"timesteps: {name} needs strictly decreasing values, got {list(timesteps)}: use process.timesteps(steps)")
    if timesteps[0] >= process.T or timesteps[-1] < -1:
        raise ValueError(f"timesteps: {name} needs values from {process.T - 1} to -1, got {timesteps[0]} to {timesteps[-1]}")


def _filled(x: Float[Tensor, "b c h w"], t: int) -> Int[Tensor, " b"]:
    return torch.full((len(x),), t, device=x.device)


def _ddim_step(
    process: Process, x: Float[Tensor, "b c h w"], x0: Float[Tensor, "b c h w"], t: int, t_next: int, eta: float
) -> tuple[Float[Tensor, "b c h w"], float]:
    """Mean and standard deviation of x at t_next: Eq. 12 and 16, arXiv:2010.02502."""
    (alpha, sigma), (alpha_next, sigma_next) = process.level(t), process.level(t_next)
    eps = (x - alpha * x0) / sigma
    fresh = eta * sigma_next / sigma * math.sqrt(1 - (alpha / alpha_next) ** 2)
    return alpha_next * x0 + math.sqrt(max(sigma_next**2 - fresh**2, 0.0)) * eps, fresh


def _hold(process: Process, x: Float[Tensor, "b c h w"], t: int, t_next: int, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """x at t_next if x0 stayed what it is on the way: the exact solution that every solver here on x0 starts from."""
    (alpha, sigma), (alpha_next, sigma_next) = process.level(t), process.level(t_next)
    return sigma_next / sigma * x + (alpha_next - alpha * sigma_next / sigma) * x0


def _log_snr(process: Process, t: int) -> float:
    """lambda = log(alpha / sigma), the clock in which x0 is a polynomial; never called with t = -1."""
    alpha, sigma = process.level(t)
    if alpha == 0:  # zero terminal SNR: a finite start, diffusers' where that is before the next t
        alpha = min(2**-12, process.level(t - 1)[0] / 2)
    return math.log(alpha) - math.log(sigma)


def _extrapolate(
    process: Process, x0: Float[Tensor, "b c h w"], x0_old: Float[Tensor, "b c h w"], clock: Sequence[int]
) -> Float[Tensor, "b c h w"]:
    """x0's mean over the step clock[1] -> clock[2], with its slope from clock[0] -> clock[1]: DPM-Solver++(2M) and UniP-2."""
    old, now, ahead = (_log_snr(process, t) for t in clock)
    return x0 + (ahead - now) / (now - old) / 2 * (x0 - x0_old)


def _interpolate(
    process: Process,
    x0: Float[Tensor, "b c h w"],
    x0_old: Float[Tensor, "b c h w"],
    x0_older: Float[Tensor, "b c h w"],
    clock: Sequence[int],
) -> Float[Tensor, "b c h w"]:
    """x0's mean over the step clock[1] -> clock[2], now that x0 at clock[2] is known: UniC-2."""
    older, old, now = (_log_snr(process, t) for t in clock)
    h = now - old
    r = (older - old) / h
    whole = math.expm1(-h)  # B(h) up to sign
    b1 = (-whole / h - 1) / whole
    b2 = 2 * ((-whole / h - 1) / -h - 1 / 2) / whole
    rho = (b1 - b2) / (1 - r)  # solves rho + rho_now = b1, r rho + rho_now = b2
    return x0_old + rho / r * (x0_older - x0_old) + (b1 - rho) * (x0 - x0_old)
