"""Every sampler, step by step, against the diffusers scheduler that should equal it: one row of ORACLES each.

Both sides get the same network, timesteps and noise. diffusers keeps its tables in float32; that they hold the same schedule is tested
in test_process.py, so here its schedulers are given our float64 tables: what is compared is the solver alone.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler
from torch import Tensor

from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import SAMPLERS

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # ours -> diffusers'
DIVISORS = (1, 2, 10, 50)


@dataclass(frozen=True)
class Oracle:
    """What a sampler must equal, and the grid over which."""

    scheduler: Any
    arguments: dict[str, Any] = field(default_factory=dict)  # of the scheduler
    stop: tuple[str, Any, Any] | None = None  # the scheduler's argument for ending: its name, its value for stop 0, for stop -1
    steps: tuple[int, ...] = (1, 2, 3, 14, 15, 23, 50)
    spacings: tuple[str, ...] = ("leading", "trailing")
    predictions: tuple[str, ...] = ("eps", "x0", "v")
    schedules: tuple[str, ...] = ("scaled_linear", "linear", "cosine", "zero_terminal_snr")
    etas: tuple[float | None, ...] = (None,)
    T: int = 1000


ALPHA = ("set_alpha_to_one", False, True)
SIGMA = ("final_sigmas_type", "sigma_min", "zero")
ORACLES = {
    # diffusers' DDPM always ends in clean data
    "ddpm": Oracle(DDPMScheduler, {"clip_sample": False}, steps=(2, 23, 200), spacings=("trailing",), T=200),
    # DDIM and PNDM find the previous t by subtracting T // steps, which is right for divisors of T
    "ddim": Oracle(DDIMScheduler, {"clip_sample": False}, ALPHA, steps=DIVISORS, etas=(0.0, 0.3, 1.0)),
    # with v diffusers averages v over different t; ours averages eps, as the method is defined
    "plms": Oracle(
        PNDMScheduler, {"skip_prk_steps": True}, ALPHA, DIVISORS, predictions=("eps",), schedules=("scaled_linear", "linear", "cosine")
    ),
    "dpmpp_2m": Oracle(DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}, SIGMA),
    "unipc": Oracle(UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 2}, SIGMA),
}


def grid() -> Iterator[Any]:
    for name, o in ORACLES.items():
        for values in product(o.schedules, o.predictions, o.spacings, o.steps, o.etas):
            if values[:2] != ("zero_terminal_snr", "eps"):
                yield pytest.param(name, *values, id="-".join(str(v) for v in (name, *values) if v is not None))


def make_process(oracle: Oracle, schedule: str, prediction: str) -> Process:
    if schedule != "zero_terminal_snr":
        return Process(ProcessConfig(schedule=schedule, prediction=prediction, T=oracle.T))
    process = Process(ProcessConfig(zero_terminal_snr=True, prediction=prediction, T=oracle.T))
    if oracle.stop == SIGMA:  # diffusers' solvers start a little off zero; test_samplers.py compares that with starting at 0
        process.alpha[process.T - 1] = 2**-12
        process.sigma[process.T - 1] = (1 - 2**-24) ** 0.5
    return process


def network(process: Process, x: Tensor, t: int) -> Tensor:
    """The best answer for Gaussian data, and something that depends on x and t on top: a plausible, stable network."""
    alpha, sigma = process.level(t)
    best = {"eps": sigma, "x0": alpha, "v": 0.0}[process.prediction]
    return best * x + 0.1 * torch.sin(3 * x.roll(1, dims=-1) + t / 200)


def reference(oracle: Oracle, process: Process, timesteps: list[int], x: Tensor, eta: float | None) -> list[Tensor]:
    """x after each of diffusers' steps."""
    arguments = dict(oracle.arguments, prediction_type=PREDICTIONS[process.prediction])
    if oracle.stop:
        arguments[oracle.stop[0]] = oracle.stop[1 - timesteps[-1]]
    scheduler = oracle.scheduler(num_train_timesteps=process.T, **arguments)
    scheduler.alphas_cumprod = process.alpha[:-1] ** 2
    if oracle.stop == ALPHA:
        scheduler.final_alpha_cumprod = process.alpha[timesteps[-1]] ** 2
    scheduler.set_timesteps(len(timesteps) - 1)
    if isinstance(scheduler, PNDMScheduler):  # evaluates at the second t twice
        scheduler.timesteps = torch.tensor([*timesteps[:2], *timesteps[1:-1]][: len(timesteps) if len(timesteps) > 2 else 1])
    else:
        scheduler.timesteps = torch.tensor(timesteps[:-1])
    if oracle.stop == SIGMA:
        scheduler.sigmas = (process.sigma / process.alpha)[timesteps]
    accepted = inspect.signature(scheduler.step).parameters
    noise = {"generator": torch.Generator().manual_seed(7)} if "generator" in accepted else {}
    noise |= {} if eta is None else {"eta": eta}
    result = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(process, x, int(t)), t, x, **noise).prev_sample
        result.append(x)
    return result[1:] if isinstance(scheduler, PNDMScheduler) and len(timesteps) > 2 else result


@pytest.mark.parametrize(("name", "schedule", "prediction", "spacing", "steps", "eta"), grid())
def test_every_step_equals_diffusers(name: str, schedule: str, prediction: str, spacing: str, steps: int, eta: float | None) -> None:
    process = make_process(ORACLES[name], schedule, prediction)
    timesteps = process.timesteps(steps, spacing)
    x = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = reference(ORACLES[name], process, timesteps, x, eta)
    g = torch.Generator().manual_seed(7)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return process.to_x0(network(process, x_t, int(t[0])), x_t, t)

    options = {} if eta is None else {"eta": eta}
    ours = list(SAMPLERS[name](denoise, x, process, timesteps, lambda like: torch.randn(like.shape, generator=g), **options))
    assert [step.t for step in ours] == timesteps[1:]
    assert len(expected) == steps
    for step, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(step.x, theirs, rtol=0, atol=2e-5 * max(1.0, theirs.abs().max().item()))


def test_every_sampler_has_an_oracle() -> None:
    assert SAMPLERS.keys() == ORACLES.keys()
