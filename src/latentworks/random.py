"""Random numbers by name: a generator is a function of (seed, purpose, step, index), so noise never depends on batch, order or process."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from latentworks.types import RandnLike

__all__ = ["generator", "randn_like_per_image", "seed_of"]


def seed_of(*key: int | str) -> int:
    """A seed that is a pure function of its key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of its key, e.g. ``generator(seed, "posterior", step, index)``."""
    return torch.Generator().manual_seed(seed_of(*key))


def randn_like_per_image(purpose: str, seeds: Sequence[int]) -> RandnLike:
    """Noise whose row i comes from a generator of ``seeds[i]``; successive calls go on drawing from the same generators.

    Image i of a batch therefore gets the same noise whatever its neighbours are.
    """
    generators = [generator(seed, purpose) for seed in seeds]

    def randn_like(x: Tensor) -> Tensor:
        if len(x) != len(generators):
            raise ValueError(f"noise was asked for {len(x)} images but {len(generators)} seeds were given")
        rows = [torch.randn(x.shape[1:], generator=g) for g in generators]
        return torch.stack(rows).to(device=x.device, dtype=x.dtype)

    return randn_like
