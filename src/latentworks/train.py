"""The training loop: one readable loop on accelerate that yields after every step; the driver logs, draws, saves and stops."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from pydantic import Field
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.engine import bf16_in_hardware, keep_memory
from latentworks.objectives.base import Objective
from latentworks.optimisers import Muon
from latentworks.random import seed_of
from latentworks.types import Batch

__all__ = ["Data", "State", "Stepped", "TrainConfig", "learning_rate", "make_accelerator", "to_device", "train"]


class TrainConfig(Config):
    """``batch`` is per process and micro-batch; a step sees batch x accumulate x processes samples. ``warmup`` in steps; ``decay`` runs to
    ``final_lr`` x lr at the last step. ``ema``: highest decay, reached as (1 + n) / (10 + n); 0 means no average."""

    steps: int = Field(10_000, ge=1)
    batch: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)
    optimiser: Literal["adamw", "adam", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(0, ge=0)
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final_lr: float = Field(0.0, ge=0, le=1)
    clip: float | None = Field(1.0, gt=0)
    ema: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    seed: int = 0


class Data(Protocol):
    """Where batches come from; a pure function of (seed, step), so a resumed run needs no state."""

    def indices_for(self, step: int, batch: int) -> list[int]: ...
    def batch(self, indices: list[int], step: int) -> Batch: ...


@dataclass(frozen=True)
class Stepped:
    """After one optimiser step of each module: figures are detached tensors; ``state`` may be saved now."""

    step: int  # steps done
    log: dict[str, Tensor]
    state: "State"


class Average:
    """Exponential moving average of a module's floating-point parameters; buffers are copied. Decay min(decay, (1 + n) / (10 + n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """After step n (the first is 1): shadow -= (1 - decay) (shadow - live)."""
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live weights and averages; a second call undoes it."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            kept = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(kept)


class State:
    """Everything a run is: modules, optimisers, averages and the step count; flat tensors out and in for exact resume."""

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        self.objective, self.config, self.step = objective, config, 0
        self.modules = dict(objective.modules)
        self.optimisers = {name: _optimiser(module, config) for name, module in self.modules.items()}
        self.averages = {name: Average(self.modules[name], config.ema) for name in objective.averaged} if config.ema else {}

    def tensors(self) -> dict[str, Tensor]:
        """A flat, contiguous snapshot (CPU tensors that do not alias the live ones are the caller's business)."""
        out: dict[str, Tensor] = {"step": torch.tensor(self.step)}
        for name, module in self.modules.items():
            out |= {f"module.{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for index, values in optimiser.state_dict()["state"].items():
                out |= {f"optimiser.{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        for name, average in self.averages.items():
            out |= {f"average.{name}.{index}": shadow for index, shadow in enumerate(average.shadow)}
        return {key: value.detach().contiguous() for key, value in out.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises: ValueError if the snapshot belongs to another model."""
        for name, module in self.modules.items():
            prefix = f"module.{name}."
            values = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            try:
                module.load_state_dict(values, strict=True)
            except RuntimeError:
                raise ValueError(f"the saved state holds another {name}, which does not fit this recipe: train into a new folder") from None
        for name, optimiser in self.optimisers.items():
            prefix = f"optimiser.{name}."
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, field = key.removeprefix(prefix).split(".")
                    state.setdefault(int(index), {})[field] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for name, average in self.averages.items():
            for place, shadow in enumerate(average.shadow):
                key = f"average.{name}.{place}"
                if key not in tensors:
                    raise ValueError(f"the saved state has no averages of {name}: it was trained with train.ema=0; train into a new folder")
                shadow.copy_(tensors[key])
        self.step = int(tensors["step"])

    @torch.no_grad()
    def forget(self, parameter: nn.Parameter, rows: Tensor) -> None:
        """Rows that were replaced: their moments are zero again, their averages what they are now."""
        for optimiser in self.optimisers.values():
            for moment in optimiser.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[rows] = 0
        for average in self.averages.values():
            for live, shadow in zip(average.live, average.shadow, strict=True):
                if live is parameter:
                    shadow[rows] = live[rows]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the modules carry their averaged weights and are in evaluation mode."""
        modes = {name: module.training for name, module in self.modules.items()}
        for average in self.averages.values():
            average.swap()
        for module in self.modules.values():
            module.eval()
        try:
            yield
        finally:
            for average in self.averages.values():
                average.swap()
            for name, module in self.modules.items():
                module.train(modes[name])


def make_accelerator(config: TrainConfig, tensorboard: Path | None = None) -> Accelerator:
    """Devices and processes as accelerate finds them. bf16 where it is fast: CUDA, and CPUs with bf16 in hardware.

    ``tensorboard``: the folder it logs to, if any.
    """
    tracking = {"log_with": "tensorboard", "project_dir": str(tensorboard)} if tensorboard else {}
    AcceleratorState._reset_state()  # it is one for the whole program, and would hold a second run to the first one's precision
    # buffers are counts that each process keeps for itself; broadcasting them would undo the others' counting
    processes = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision="bf16" if _bf16(config) else "no", kwargs_handlers=[processes], **tracking)
    keep_memory(accelerator.device)
    return accelerator


def _bf16(config: TrainConfig) -> bool:
    return bf16_in_hardware() if config.precision == "auto" else config.precision == "bf16"


def learning_rate(config: TrainConfig, step: int) -> float:
    """At a step (0-based): linear warm-up times the decay, which spans the whole run."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    done = min(1.0, step / config.steps)
    shape = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done}[config.decay]
    return config.lr * warm * (config.final_lr + (1 - config.final_lr) * shape)


def _optimiser(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    # the fused kernel rounds otherwise than the authors' optimiser, which a run that asks for float32 repeats
    kernel = {"foreach": True} if config.precision == "float32" else {"fused": True}
    if config.optimiser == "adam":
        return torch.optim.Adam(trained, lr=config.lr, betas=config.betas, **kernel)
    if config.optimiser == "muon":
        dtype = torch.bfloat16 if _bf16(config) else torch.float32
        return Muon(module, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, dtype=dtype, **kernel)
    return torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, **kernel)


def train(
    objective: Objective, data: Data, config: TrainConfig, *, accelerator: Accelerator, resume: Mapping[str, Tensor] | None = None
) -> Iterator[Stepped]:
    """Yield after every step until ``config.steps`` are done. Stop by no longer iterating; nothing is drawn, printed or saved here.

    A step's data, noise and learning rate are functions of (seed, step), so stopping after k steps, restoring `State.tensors` and going on
    gives the same weights as never stopping. Raises: ValueError for a foreign ``resume``; FloatingPointError before a non-finite update.
    """
    for module in objective.modules.values():
        module.to(accelerator.device)
    state = State(objective, config)
    if resume is not None:
        state.restore(resume)
    for name, module in state.modules.items():
        objective.modules[name] = accelerator.prepare_model(module)
    for module in objective.modules.values():
        module.train()
    while state.step < config.steps:
        batches = _micro_batches(data, config, state.step, accelerator)
        with _keyed_rng(config.seed, state.step, accelerator):
            log = _one_step(objective, batches, state, accelerator)
            upkeep = objective.after_step(state.step, batches[0])
        if upkeep.parameter is not None and upkeep.rows is not None:
            state.forget(upkeep.parameter, upkeep.rows)
        state.step += 1
        for average in state.averages.values():
            average.update(state.step)
        yield Stepped(state.step, log | upkeep.log, state)


@contextmanager
def _keyed_rng(seed: int, step: int, accelerator: Accelerator) -> Iterator[None]:
    """Dropout draws from torch's global generators: within, they are a function of (seed, step, process); afterwards as they were.

    So nothing that is drawn, measured or encoded between two steps changes the run, and no generator has to be saved.
    """
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        torch.manual_seed(seed_of(seed, "step", step, accelerator.process_index))
        yield


def _micro_batches(data: Data, config: TrainConfig, step: int, accelerator: Accelerator) -> list[Batch]:
    """This process's share of the step's samples."""
    size, ranks = config.batch * config.accumulate, accelerator.num_processes
    mine = data.indices_for(step, size * ranks)[accelerator.process_index * size :][:size]
    batches = [data.batch(mine[start : start + config.batch], step) for start in range(0, size, config.batch)]
    return [to_device(batch, accelerator.device) for batch in batches]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors there."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}  # type: ignore[return-value]


def _one_step(objective: Objective, batches: list[Batch], state: State, accelerator: Accelerator) -> dict[str, Tensor]:
    """Walk the losses of all micro-batches in lockstep: each kind of loss is accumulated over them, then its optimisers step."""
    streams = [objective.losses(batch, state.step) for batch in batches]
    log: dict[str, Tensor] = {}
    while True:
        trains: tuple[str, ...] = ()
        for stream in streams:
            with accelerator.autocast():
                loss = next(stream, None)
            if loss is None:
                return log
            if not torch.isfinite(loss.value):
                bad = ", ".join(f"{key} = {float(value)}" for key, value in loss.log.items())
                what = f"the loss of {'/'.join(loss.trains)} is not finite at step {state.step} ({bad})"
                raise FloatingPointError(f"{what}; try a lower train.lr")
            accelerator.backward(loss.value / len(streams))
            for key, value in loss.log.items():
                log[key] = log.get(key, torch.zeros_like(value)) + value / len(streams)
            trains = loss.trains
        for name in trains:
            log |= _update(name, state)


def _update(name: str, state: State) -> dict[str, Tensor]:
    """Clip, set the learning rate, step and clear one module's optimiser; its gradient norm before clipping."""
    config, optimiser = state.config, state.optimisers[name]
    weights = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient of {name} is not finite at step {state.step}; try a lower train.lr")
    if config.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, config.clip, norm)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(config, state.step)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return {f"grad_norm/{name}": norm}
