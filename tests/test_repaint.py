"""RePaint: every step equals diffusers' scheduler, its walk is the authors', resampling brings hole and surroundings together."""

from itertools import pairwise

import pytest
import torch
from diffusers import RePaintScheduler
from torch import Tensor

from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import repaint, walk
from latentworks.random import randn_like_per_image


def hole(b: int = 2) -> Tensor:
    mask = torch.zeros(b, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 1:3, 1:3] = True
    return mask


def network(process: Process, x: Tensor, t: int) -> Tensor:
    """eps: the best answer for Gaussian data, and something that depends on x and t on top."""
    return process.level(t)[1] * x + 0.1 * torch.sin(3 * x.roll(1, dims=-1) + t / 20)


@pytest.mark.parametrize(
    ("steps", "jump", "resample"), [(20, 3, 3), (20, 10, 2), (7, 1, 4), (7, 6, 2), (5, 4, 1), (1, 1, 1), (250, 10, 10)]
)
def test_the_walk_is_that_of_diffusers_and_the_authors(steps: int, jump: int, resample: int) -> None:
    """diffusers lists where to evaluate and where to go back, as the authors' get_schedule_jump does but for its final -1."""
    scheduler = RePaintScheduler(num_train_timesteps=steps)
    scheduler.set_timesteps(steps, jump_length=jump, jump_n_sample=resample)
    assert walk(list(range(steps - 1, -2, -1)), jump, resample) == [*scheduler.timesteps.tolist(), -1]


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize(("jump", "resample"), [(1, 3), (3, 2), (10, 1)])
def test_every_step_equals_diffusers(schedule: str, jump: int, resample: int) -> None:
    """With our float64 tables, and the same noise, on all T steps: with fewer its `undo_step` takes betas that are one step off."""
    process, g = Process(ProcessConfig(T=20, schedule=schedule)), torch.Generator().manual_seed(0)
    x, known = (torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    ours, theirs = (torch.Generator().manual_seed(7) for _ in range(2))
    scheduler = RePaintScheduler(num_train_timesteps=20, eta=1.0, clip_sample=False)
    scheduler.alphas_cumprod = process.alpha[:-1] ** 2
    scheduler.betas = 1 - (process.alpha[:-1] / process.alpha[torch.arange(20) - 1]) ** 2
    scheduler.set_timesteps(20, jump_length=jump, jump_n_sample=resample)
    clock, expected, moving = [*scheduler.timesteps.tolist(), -1], [], x
    for t, t_next in pairwise(clock):
        if t_next > t:
            moving = scheduler.undo_step(moving, t_next, theirs)
            continue
        moving = scheduler.step(network(process, moving, t), t, moving, known, (~hole()).double(), theirs).prev_sample
        expected.append((moving, t_next))

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.level(int(t[0]))
        return (x - sigma * network(process, x, int(t[0]))) / alpha

    def randn_like(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=ours, dtype=like.dtype)

    steps = list(repaint(denoise, x, process, process.timesteps(20), randn_like, known=known, mask=hole(), jump=jump, resample=resample))
    assert [step.t for step in steps] == [t for _, t in expected]
    for step, (moving, _) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x, moving, rtol=1e-10, atol=1e-10)
        assert torch.equal(step.x0.where(~hole(), 0), known.where(~hole(), 0))
    torch.testing.assert_close(steps[-1].x.where(~hole(), 0), known.where(~hole(), 0))


def test_resampling_approaches_the_conditional_distribution() -> None:
    """Pairs of values with correlation 0.9, one of them known: the other has mean 0.9 of it and variance 0.19."""
    process, n = Process(ProcessConfig(schedule="cosine")), 2000
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.level(int(t[0]))
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        return torch.einsum("ij,bchj->bchi", gain, x)

    known, mask = torch.full((n, 1, 1, 2), 1.5), torch.tensor([False, True]).expand(n, 1, 1, 2)
    errors = {}
    for resample in (1, 10):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(n, 1, 1, 2, generator=g)
        timesteps, draw = process.timesteps(40, "trailing"), lambda like, g=g: torch.randn(like.shape, generator=g)
        drawn = list(repaint(denoise, x, process, timesteps, draw, known=known, mask=mask, jump=5, resample=resample))[-1].x[..., 1]
        errors[resample] = abs(drawn.mean().item() - 1.35), abs(drawn.var().item() - 0.19)
    assert errors[1][0] > 0.4
    assert errors[1][1] > 0.08
    assert errors[10][0] < 0.06
    assert errors[10][1] < 0.04


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("terminal", [False, True])
def test_image_i_does_not_depend_on_its_batch(spacing: str, terminal: bool) -> None:
    process, seeds = Process(ProcessConfig(prediction="v", zero_terminal_snr=terminal)), [4, 5, 6]
    known = randn_like_per_image("known", seeds)(torch.empty(3, 2, 4, 4))

    def sample(rows: slice) -> Tensor:
        start, ancestral = (randn_like_per_image(purpose, seeds[rows]) for purpose in ("start", "ancestral"))
        x, timesteps = start(torch.empty(len(seeds[rows]), 2, 4, 4)), process.timesteps(9, spacing)
        options = {"known": known[rows], "mask": hole(len(x)), "jump": 3, "resample": 2}
        return list(repaint(lambda x, t: 0.5 * x.roll(1, -1), x, process, timesteps, ancestral, **options))[-1].x

    whole = sample(slice(0, 3))
    assert whole.isfinite().all()
    torch.testing.assert_close(sample(slice(1, 2)), whole[1:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": 0}, "resample: 0 is not possible for the sampler repaint: use 1"),
        ({"jump": 5}, "jump: the sampler repaint cannot go back 5 of 5 steps: use fewer, at least 1, or more steps"),
        ({"jump": 0, "resample": 1}, "jump: the sampler repaint cannot go back 0 of 5 steps"),
    ],
)
def test_mistakes_are_named(options: dict[str, int], message: str) -> None:
    process, x = Process(ProcessConfig()), torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=message):
        next(repaint(lambda x, t: x, x, process, process.timesteps(5), torch.randn_like, known=x, mask=hole(), **options))
    with pytest.raises(ValueError, match="timesteps: repaint needs"):
        next(repaint(lambda x, t: x, x, process, [5], torch.randn_like, known=x, mask=hole()))
