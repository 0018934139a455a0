"""What is trained towards: an objective yields losses, one for each group of weights, and the training loop steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from latentworks.random import generator
from latentworks.types import Batch, RandnLike

__all__ = ["Loss", "Noise", "Objective", "Upkeep", "keyed_noise", "mean_over_processes", "rows_of_processes"]

Noise = Callable[[str, int, Batch], RandnLike]
"""(purpose, step, batch) -> randn_like for that batch."""


@dataclass(frozen=True)
class Loss:
    """A scalar to back-propagate, the names of the modules whose optimisers then step, and detached figures to log."""

    value: Tensor
    trains: tuple[str, ...]
    log: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Upkeep:
    """What upkeep did: figures to log, and the rows of a parameter that it replaced, whose averages and moments no longer mean anything."""

    log: dict[str, Tensor] = field(default_factory=dict)
    parameter: nn.Parameter | None = None
    rows: Int[Tensor, " n"] | None = None


class Objective(ABC):
    """Abstract.

    ``modules`` has one optimiser each; `train()` replaces its values by the prepared (DDP-wrapped) ones, so the training path must go
    through it. ``averaged`` names those that get an exponential moving average. ``best`` is the held-out figure (lower is better) by which
    the best weights are kept.
    """

    modules: dict[str, nn.Module]
    averaged: tuple[str, ...]
    best: str

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """The losses of one step, in order; each is back-propagated and its optimisers have stepped before the next is asked for."""

    @abstractmethod
    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Figures on held-out data with the present weights; a pure function of weights and data."""

    def after_step(self, step: int, batch: Batch) -> Upkeep:
        """Upkeep that is no gradient step, e.g. the restart of dead codes. Default: nothing."""
        return Upkeep()


def keyed_noise(seed: int) -> Noise:
    """Noise keyed by (seed, purpose, step, index): independent of batch, order and process."""

    def noise(purpose: str, step: int, batch: Batch) -> RandnLike:
        keys = [(seed, purpose, step, int(index)) for index in batch["index"]]

        def randn_like(x: Tensor) -> Tensor:
            rows = [torch.randn(x.shape[1:], generator=generator(*key)) for key in keys]
            return torch.stack(rows).to(device=x.device, dtype=x.dtype)

        return randn_like

    return noise


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a distributed run; the tensor itself otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = x.clone()
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x


def rows_of_processes(x: Tensor) -> Tensor:
    """The rows of all processes of a distributed run, in order, through which gradients flow; the tensor itself otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = torch.cat(all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
    return x
