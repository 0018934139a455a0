"""The process against diffusers' schedules, closed forms and inverse identities."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from latentworks.diffusion.process import Process, ProcessConfig

SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours -> diffusers'


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every_t(process: Process) -> torch.Tensor:
    return torch.arange(process.T)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_equal_diffusers(schedule: str, zero_terminal_snr: bool) -> None:
    process = Process(ProcessConfig(schedule=schedule, zero_terminal_snr=zero_terminal_snr, prediction="v"))
    oracle = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule=SCHEDULES[schedule], rescale_betas_zero_snr=zero_terminal_snr)
    torch.testing.assert_close(process.alpha[:-1].float() ** 2, oracle.alphas_cumprod, rtol=2e-4, atol=1e-7)
    assert process.level(-1) == (1, 0)
    assert (process.level(process.T - 1)[0] == 0) == zero_terminal_snr
    torch.testing.assert_close(process.alpha**2 + process.sigma**2, torch.ones(process.T + 1, dtype=torch.float64))


@pytest.mark.parametrize(("start", "end", "abar"), [(0.0015, 0.0195, 1.42e-4), (0.0015, 0.0205, 9.69e-5), (0.00085, 0.012, 4.66e-3)])
def test_terminal_snr_of_the_authors_settings(start: float, end: float, abar: float) -> None:
    assert Process(ProcessConfig(beta_start=start, beta_end=end)).level(999)[0] ** 2 == pytest.approx(abar, rel=5e-3)


def test_alpha_of_short_processes_is_the_product_by_hand() -> None:
    process = Process(ProcessConfig(schedule="linear", beta_start=0.1, beta_end=0.3, T=3))
    expected = [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]
    assert [process.level(t)[0] ** 2 for t in range(3)] == pytest.approx(expected)


def test_bad_configs_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="use prediction v or x0"):
        ProcessConfig.parse({"zero_terminal_snr": True})
    with pytest.raises(ValueError, match="beta_end"):
        ProcessConfig.parse({"beta_start": 0.5, "beta_end": 0.1})
    with pytest.raises(ValueError, match="T"):
        ProcessConfig.parse({"T": 1})


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_to_x0_inverts_target_at_every_t_and_for_clean_data(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction))
    t = torch.tensor([-1, 0, 1, 500, 999])
    x0, noise = images(5, 2, 3, 3), images(5, 2, 3, 3, seed=1)
    x_t = process.add_noise(x0, noise, t)
    torch.testing.assert_close(process.to_x0(process.target(x0, noise, t), x_t, t), x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(process.to_eps(x0, x_t, t)[1:], noise[1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_zero_terminal_snr_starts_from_pure_noise_and_still_gives_x0(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction, zero_terminal_snr=True))
    x0, noise, t = images(1, 1, 2, 2), images(1, 1, 2, 2, seed=1), torch.tensor([999])
    x_t = process.add_noise(x0, noise, t)
    torch.testing.assert_close(x_t, noise)
    torch.testing.assert_close(process.to_x0(process.target(x0, noise, t), x_t, t), x0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_results_are_float32_for_networks_in_half_precision(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction))
    half, t = images(2, 1, 2, 2).bfloat16(), torch.tensor([3, 999])
    for result in (
        process.add_noise(half, half, t),
        process.target(half, half, t),
        process.to_x0(half, half, t),
        process.to_eps(half, half, t),
    ):
        assert result.dtype == torch.float32


def test_velocity_is_the_derivative_along_the_circle() -> None:
    """v = d x_t / d phi with alpha = cos phi, sigma = sin phi (arXiv:2202.00512, appendix D)."""
    process = Process(ProcessConfig(prediction="v"))
    x0, noise, t = images(1, 1, 2, 2), images(1, 1, 2, 2, seed=1), torch.tensor([400])
    phi = math.acos(process.level(400)[0])
    step = 1e-3
    derivative = ((math.cos(phi + step) - math.cos(phi - step)) * x0 + (math.sin(phi + step) - math.sin(phi - step)) * noise) / (2 * step)
    torch.testing.assert_close(process.target(x0, noise, t), derivative, rtol=0, atol=1e-4)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_timesteps_are_exact_in_number_and_strictly_decreasing(data: st.DataObject) -> None:
    T = data.draw(st.sampled_from([2, 3, 7, 100, 1000]))
    steps = data.draw(st.integers(1, T))
    process = Process(ProcessConfig(T=T))
    for spacing in ("leading", "trailing"):
        values = process.timesteps(steps, spacing)
        assert len(values) == steps + 1
        assert all(later < earlier for earlier, later in pairwise(values))
        assert values[0] < T
        assert values[-1] == (-1 if spacing == "trailing" or steps == T else 0)
    assert process.timesteps(steps, "trailing")[0] == T - 1


@pytest.mark.parametrize("T", [2, 3, 8, 50, 1000])
def test_every_number_of_steps_works(T: int) -> None:
    process = Process(ProcessConfig(T=T))
    assert all(len(set(process.timesteps(s, sp))) == s + 1 for s in range(1, process.T + 1) for sp in ("leading", "trailing"))


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_leading_is_the_authors_clock_for_divisors(steps: int) -> None:
    authors = [t + 1 for t in range(0, 1000, 1000 // steps)]
    assert Process(ProcessConfig()).timesteps(steps) == [*reversed(authors), 0]


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 16, 20, 30, 50, 99, 300, 400, 999, 1000])
def test_trailing_is_diffusers(steps: int) -> None:
    oracle = DDIMScheduler(timestep_spacing="trailing")
    oracle.set_timesteps(steps)
    assert Process(ProcessConfig()).timesteps(steps, "trailing") == [*oracle.timesteps.tolist(), -1]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_name_the_limits(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: {steps} .* use 1 to 1000"):
        Process(ProcessConfig()).timesteps(steps)


def test_unknown_spacing_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match=r"'leading'.*'trailing'"):
        Process(ProcessConfig()).timesteps(10, "linspace")  # type: ignore[arg-type]


def test_snr_equals_diffusers() -> None:
    process = Process(ProcessConfig())
    oracle = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    torch.testing.assert_close(process.snr(every_t(process)), compute_snr(oracle, every_t(process)), rtol=5e-4, atol=0)
    assert process.snr(torch.tensor([-1])).item() == math.inf


def test_elbo_weights_for_eps_are_the_authors() -> None:
    process = Process(ProcessConfig())
    beta = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    alpha, abar = 1 - beta, torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    variance = beta * (1 - before) / (1 - abar)
    expected = beta**2 / (2 * variance * alpha * (1 - abar))  # ddpm.py register_schedule
    expected[0] = expected[1]
    torch.testing.assert_close(process.elbo_weights(every_t(process)), expected.float())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_weighted_errors_are_the_kl_between_gaussian_posteriors(prediction: str, t: int) -> None:
    """KL(q(x_{t-1} | x_t, x0) || q(x_{t-1} | x_t, guess)) in closed form, Eq. 6-7 of arXiv:2006.11239."""
    process = Process(ProcessConfig(prediction=prediction))
    abar, before = process.level(t)[0] ** 2, process.level(t - 1)[0] ** 2
    beta = 1 - abar / before
    x0, noise, ts = images(1, 1, 1, 1), images(1, 1, 1, 1, seed=1), torch.tensor([t])
    x_t, target = process.add_noise(x0, noise, ts), process.target(x0, noise, ts)
    output = target + 0.5
    mean_error = math.sqrt(before) * beta / (1 - abar) * (process.to_x0(output, x_t, ts) - process.to_x0(target, x_t, ts))
    kl = mean_error**2 / (2 * beta * (1 - before) / (1 - abar))
    weight = process.elbo_weights(ts)
    torch.testing.assert_close(weight * (output - target).square().flatten(), kl.flatten(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weights_follow_the_paper(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction))
    snr = process.snr(every_t(process))
    divisor = {"eps": snr, "x0": torch.ones(1000), "v": snr + 1}[prediction]
    torch.testing.assert_close(process.min_snr_weights(every_t(process), 5.0), snr.clamp(max=5) / divisor, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="gamma"):
        process.min_snr_weights(every_t(process), 0.0)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_weights_are_finite_at_zero_terminal_snr(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction, zero_terminal_snr=True))
    assert process.elbo_weights(every_t(process)).isfinite().all()
    assert process.min_snr_weights(every_t(process), 5.0).isfinite().all()
