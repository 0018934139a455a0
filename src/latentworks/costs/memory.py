"""How much memory a recipe needs: its passes are gone through with fake tensors, and what would be alive at once is added up.

Weights, gradients, optimiser and average follow from the number of weights. What the passes hold on top (activations, gradients) is not a
formula: every tensor an operation makes is counted until it is released, forwards and backwards, with this machine's kernels and precision.
Not in it: what a kernel allocates inside, and memory that the allocator keeps.
"""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentworks.costs.rehearsal import Rehearsal
from latentworks.first_stage import FirstStage
from latentworks.recipe import DiffusionRecipe, Recipe

__all__ = ["DRAWING", "PROGRAM", "SamplingMemory", "TrainingMemory", "sampling_memory", "training_memory"]

PROGRAM, DRAWING = 760_000_000, 640_000_000
"""Bytes of Python, PyTorch and the imports in training, where optimisers import more, and in sampling (measured, Linux, PyTorch 2.14)."""


class TrainingMemory(NamedTuple):
    """In bytes. ``activations``: the most that the passes hold besides gradients. ``total``: the most that is in use at once, with
    `PROGRAM`; less than the sum, as gradients come while activations go."""

    weights: int
    gradients: int
    optimiser: int
    average: int
    activations: int
    total: int


class SamplingMemory(NamedTuple):
    """In bytes. ``total`` is with `DRAWING`."""

    weights: int
    activations: int
    total: int


def training_memory(recipe: Recipe, batch: int | None = None, bf16: bool = False) -> TrainingMemory:
    """Of one process with ``batch`` images a micro-batch (None: the recipe's). Raises: ValueError as `Rehearsal`."""
    with FakeTensorMode():
        rehearsal = Rehearsal(recipe)
        trained = _size(rehearsal.trained())
        averaged = _size(p for p in rehearsal.model.parameters() if p.requires_grad)
        weights = _size([*rehearsal.model.parameters(), *rehearsal.model.buffers(), *rehearsal.judges.parameters()])
        with _Alive(rehearsal) as alive:
            rehearsal.train(batch or recipe.train.batch, torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    average = averaged if recipe.train.ema else 0
    kept = trained if recipe.train.accumulate > 1 else 0  # of the micro-batch before
    total = PROGRAM + weights + 2 * trained + average + kept + alive.peak
    return TrainingMemory(weights, trained, 2 * trained, average, alive.activations, total)


def sampling_memory(recipe: Recipe, n: int = 1, bf16: bool = False) -> SamplingMemory:
    """Of drawing ``n`` images at once; a first stage encodes and decodes them. Raises: ValueError as `Rehearsal`."""
    guided = isinstance(recipe, DiffusionRecipe) and bool(recipe.conditioners) and recipe.sampling.guidance != 1
    peak = 0
    with FakeTensorMode(), torch.no_grad():
        rehearsal = Rehearsal(recipe)
        weights = _size([*rehearsal.model.parameters(), *rehearsal.model.buffers()])
        work_on = rehearsal.encode if isinstance(rehearsal.model, FirstStage) else rehearsal.denoise
        for work, images in ((work_on, 2 * n if guided else n), (rehearsal.decode, n)):
            with _Alive(rehearsal) as alive, torch.autocast("cpu", torch.bfloat16, enabled=bf16 and work == rehearsal.denoise):
                work(images)
            peak = max(peak, alive.peak)
    return SamplingMemory(weights, peak, DRAWING + weights + peak)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make within, until they are released, in bytes: the most at once is ``peak``, and without the
    weights' gradients ``activations``."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.gradients = self.activations = 0
        for parameter in rehearsal.trained():
            parameter.register_post_accumulate_grad_hook(self._accumulated)  # type: ignore[no-untyped-call]
        modules = (rehearsal.model, rehearsal.judges)
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak, self.activations = max(self.peak, self.now), max(self.activations, self.now - self.gradients)
        return made

    def _accumulated(self, parameter: Tensor) -> None:
        self.gradients += _size([parameter])

    def _release(self, size: int) -> None:
        self.now -= size
