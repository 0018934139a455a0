"""Samplers against exact solutions, and the promises they make: order, counts of evaluations, batches, clear mistakes.

That each equals diffusers' step by step is tested in parity/test_schedulers.py.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.random import randn_like_per_image
from latentworks.types import Step

WEIGHTS, MEANS, STDS = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1, 1, 1) for v in ([0.3, 0.7], [-1.2, 0.8], [0.25, 0.5]))
DETERMINISTIC = ["ddim", "plms", "dpmpp_2m", "unipc"]


class Mixture:
    """The exact denoiser, and the exact flow, for data from a mixture of two Gaussians."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.asked: list[int] = []

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]."""
        assert t.shape == (len(x),)
        self.asked.append(int(t[0]))
        alpha, sigma = self.process.level(int(t[0]))
        variance = alpha**2 * STDS**2 + sigma**2
        share = torch.softmax(WEIGHTS.log() - variance.log() / 2 - (x - alpha * MEANS) ** 2 / (2 * variance), dim=0)
        return (share * (MEANS + alpha * STDS**2 / variance * (x - alpha * MEANS))).sum(0).to(x.dtype)

    def cdf(self, x: Tensor, t: int) -> Tensor:
        alpha, sigma = self.process.level(t)
        return (WEIGHTS * torch.special.ndtr((x - alpha * MEANS) / (alpha**2 * STDS**2 + sigma**2).sqrt())).sum(0)

    def flow(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The probability-flow ODE's solution: in one dimension it is monotone, hence keeps quantiles. By bisection."""
        low, high = torch.full_like(x, -10), torch.full_like(x, 10)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, stop) < self.cdf(x, start)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


def run(name: str, mixture: Mixture, x: Tensor, timesteps: list[int], **options: float) -> list[Step]:
    g = torch.Generator().manual_seed(1)
    return list(
        SAMPLERS[name](mixture.denoise, x, mixture.process, timesteps, lambda like: torch.randn(like.shape, generator=g), **options)
    )


def noise(b: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(b, 1, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("plms", 2), ("dpmpp_2m", 2), ("unipc", 2)])
def test_order_of_convergence(name: str, order: int, schedule: str) -> None:
    """The slope of log error over log step size, against the exact flow from t = 900 to t = 100."""
    mixture, x = Mixture(Process(ProcessConfig(schedule=schedule))), torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 1, 3, 4)
    exact = mixture.flow(x, 900, 100)
    ends = [run(name, mixture, x, list(range(900, 99, -800 // steps)))[-1].x for steps in (40, 80, 160)]
    errors = [(end - exact).abs().mean().item() for end in ends]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_few_steps_reach_the_exact_flow_to_clean_data(name: str) -> None:
    mixture, x = Mixture(Process(ProcessConfig())), torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 1, 3, 4)
    exact = mixture.flow(x, 999, -1)
    errors = {
        steps: (run(name, mixture, x, mixture.process.timesteps(steps, "trailing"))[-1].x - exact).abs().mean() for steps in (20, 200)
    }
    assert errors[20] < (0.11 if name == "ddim" else 0.07)
    assert errors[200] < (0.015 if name == "ddim" else 0.01)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_samples_have_the_moments_of_the_data(name: str) -> None:
    mixture, n = Mixture(Process(ProcessConfig())), 20_000
    x = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    samples = run(name, mixture, x, mixture.process.timesteps(200, "trailing"))[-1].x.double()
    mean = float((WEIGHTS * MEANS).sum())
    variance = float((WEIGHTS * (STDS**2 + MEANS**2)).sum()) - mean**2
    assert samples.mean().item() == pytest.approx(mean, abs=0.03)
    assert samples.var().item() == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 3, 30])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_reported_and_clean_data_is_never_evaluated(name: str, steps: int, spacing: str) -> None:
    mixture, x = Mixture(Process(ProcessConfig())), noise()
    timesteps = mixture.process.timesteps(steps, spacing)
    result = run(name, mixture, x, timesteps)
    assert [step.t for step in result] == timesteps[1:]
    assert all(step.x.shape == x.shape and step.x.dtype == x.dtype and step.x.isfinite().all() for step in result)
    extra = [timesteps[1]] if name == "plms" and steps > 1 else []
    assert sorted(mixture.asked) == sorted(timesteps[:-1] + extra)
    if spacing == "trailing":
        torch.testing.assert_close(result[-1].x, result[-1].x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_t_in_turn_works(name: str) -> None:
    mixture = Mixture(Process(ProcessConfig(T=60)))
    assert len(run(name, mixture, noise(), mixture.process.timesteps(60))) == 60


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in SAMPLERS), ("ddim", {"eta": 0.5})])
def test_image_i_does_not_depend_on_its_batch(name: str, options: dict[str, float]) -> None:
    mixture = Mixture(Process(ProcessConfig()))
    timesteps = mixture.process.timesteps(7, "trailing")

    def sample(seeds: list[int]) -> Tensor:
        x = randn_like_per_image("start", seeds)(torch.empty(len(seeds), 3, 4, 4))
        ancestral = randn_like_per_image("ancestral", seeds)
        return list(SAMPLERS[name](mixture.denoise, x, mixture.process, timesteps, ancestral, **options))[-1].x

    whole = sample(list(range(16)))
    for seeds in ([5], [4, 5, 6], [15, 0, 5]):
        torch.testing.assert_close(sample(seeds), whole[seeds], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", *DETERMINISTIC])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 1000])
def test_zero_terminal_snr_gives_finite_samples(name: str, steps: int) -> None:
    mixture = Mixture(Process(ProcessConfig(prediction="v", zero_terminal_snr=True)))
    timesteps = mixture.process.timesteps(steps, "trailing")
    if name == "plms":
        with pytest.raises(ValueError, match=r"plms cannot start at t = 999.*use ddim or unipc"):
            run(name, mixture, noise(), timesteps)
    else:
        assert run(name, mixture, noise(1), timesteps)[-1].x.abs().max() < 3


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_starting_at_zero_snr_is_the_limit_of_diffusers_start_near_it(name: str) -> None:
    zero, near = (Process(ProcessConfig(prediction="v", zero_terminal_snr=True)) for _ in range(2))
    near.alpha[999], near.sigma[999] = 2**-12, (1 - 2**-24) ** 0.5
    timesteps = zero.timesteps(20, "trailing")
    ends = [run(name, Mixture(process), noise(), timesteps)[-1].x for process in (zero, near)]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("timesteps", [[], [5], [5, 5], [1, 2], [1000, 0], [5, -2]])
def test_bad_timesteps_name_the_sampler(name: str, timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match=f"timesteps: {'ddim' if name == 'ddpm' else name} needs"):
        run(name, Mixture(Process(ProcessConfig())), noise(), timesteps)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_bad_eta_names_the_sampler(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta: .* the sampler ddim"):
        run("ddim", Mixture(Process(ProcessConfig())), noise(), [10, 0], eta=eta)


def test_stopping_early_asks_for_nothing_more() -> None:
    mixture = Mixture(Process(ProcessConfig()))
    steps = SAMPLERS["unipc"](mixture.denoise, noise(), mixture.process, mixture.process.timesteps(50), torch.randn_like)
    assert [next(steps).t for _ in range(3)] == [961, 941, 921]
    assert len(mixture.asked) == 3
