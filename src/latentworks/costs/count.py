"""What a recipe costs, counted on PyTorch's meta device: parameters by part, the latent's shape, floating-point operations (FLOPs).

A multiply-add counts as two operations; norms, activations and sums are left out. Nothing is computed and no memory is taken.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentworks.costs.rehearsal import Rehearsal
from latentworks.first_stage import FirstStage
from latentworks.recipe import Assets, Recipe

__all__ = ["Cost", "count", "parameters", "training_operations"]


class Cost(NamedTuple):
    """``parameters`` by part (a first stage: encoder, decoder and the like). FLOPs are of one image: ``denoise``, a denoising step without
    guidance, or a classifier's pass (0 for a first stage); ``train``, a training step forwards and backwards (latents cached); ``encode``
    and ``decode``."""

    parameters: dict[str, int]
    latent: tuple[int, int, int]
    denoise: int
    train: int
    encode: int
    decode: int


def parameters(recipe: Recipe, assets: Assets | None = None) -> dict[str, int]:
    """By part. Raises: ValueError for a recipe that cannot be built."""
    with torch.device("meta"):
        return _parameters(Rehearsal(recipe, assets))


def training_operations(recipe: Recipe, cached: bool = True) -> int:
    """`Cost.train` alone; latents that are not ``cached`` are encoded for every step."""
    with torch.device("meta"):
        rehearsal = Rehearsal(recipe)
        encodes = not isinstance(rehearsal.model, FirstStage) and not cached
        return _operations(lambda: rehearsal.train(1)) + (_operations(lambda: rehearsal.encode(1)) if encodes else 0)


def count(recipe: Recipe, assets: Assets | None = None) -> Cost:
    """Everything about one recipe. Raises: ValueError for one that cannot be built, or a size that its networks do not divide."""
    with torch.device("meta"):
        rehearsal = Rehearsal(recipe, assets)
        of_latents = not isinstance(rehearsal.model, FirstStage)
        return Cost(
            _parameters(rehearsal),
            rehearsal.latent,
            _operations(lambda: rehearsal.denoise(1)) if of_latents else 0,
            _operations(lambda: rehearsal.train(1)),
            _operations(lambda: rehearsal.encode(1)),
            _operations(lambda: rehearsal.decode(1)),
        )


def _parameters(rehearsal: Rehearsal) -> dict[str, int]:
    model = rehearsal.model
    parts = {"first_stage": model} if isinstance(model, FirstStage) else dict(model.named_children())
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


@torch.no_grad()
def _operations(work: Callable[[], object]) -> int:
    """Attention is counted too: on meta, the fused kernel is taken apart into its two products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
