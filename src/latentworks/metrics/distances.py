"""Distances between two sets of feature vectors: Fréchet, kernel (KID), precision and recall, and how far a value may be off by chance."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Gaussian", "KernelDistance", "PrecisionRecall", "bootstrap", "fit_gaussian", "frechet_between", "frechet_distance", "interval", "kid",
    "precision_recall",
]  # fmt: skip

Features = Float[np.ndarray, "n d"]
Rows = Int[np.ndarray, " n"]
CHUNK = 256  # rows turned to float64 at a time


class Gaussian(NamedTuple):
    """A Gaussian fitted to features: its mean, and a factor R of the unbiased covariance R^T R with at most d rows."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "r d"]


def frechet_distance(a: Features, b: Features) -> float:
    """`frechet_between` the Gaussians fitted to two sets. Raises: ValueError for unequal dimensions or fewer than two samples."""
    _check(a, b, least=2)
    return frechet_between(fit_gaussian(a), fit_gaussian(b))


def frechet_between(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) between two Gaussians, in float64 (arXiv:1706.08500, Eq. 6).

    No matrix square root is taken: with S = R^T R, tr (S_a S_b)^1/2 is the sum of singular values of R_a R_b^T. This is exact for fewer
    samples than dimensions too.
    """
    cross = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    distance = (a.mean - b.mean).square().sum() + a.factor.square().sum() + b.factor.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def fit_gaussian(features: Features, rows: Rows | None = None) -> Gaussian:
    """The Gaussian of some ``rows`` (None: all), which are read by chunks and never copied as a whole; QR never squares a number.

    Raises: ValueError for fewer than two.
    """
    x = torch.from_numpy(features)
    numbers = torch.arange(len(x)) if rows is None else torch.from_numpy(rows)
    if len(numbers) < 2:
        raise ValueError(f"{len(numbers)} images are too few: this distance needs at least 2 on each side")
    chunks = torch.split(numbers, CHUNK)
    mean = torch.stack([x[chunk].double().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(numbers)
    factor = x.new_zeros((0, x.shape[1]), dtype=torch.float64)
    for chunk in chunks:
        factor = torch.cat([factor, x[chunk].double() - mean])
        if len(factor) > x.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
    return Gaussian(mean, factor / (len(numbers) - 1) ** 0.5)


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kid(a: Features, b: Features, *, seed: int, subsets: int = 100, subset_size: int = 1000) -> KernelDistance:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3, over random subsets, in float64 (arXiv:1801.01401, section 4).

    Raises: ValueError for unequal dimensions or a subset larger than a set.
    """
    _check(a, b, least=2)
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(f"subset_size {subset_size}: use 2 to {min(len(a), len(b))}, the size of the smaller set")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (torch.from_numpy(f[random.choice(len(f), subset_size, replace=False)]).double() for f in (a, b))
        pairs = subset_size * (subset_size - 1)
        within = sum((k.sum() - k.trace()) / pairs for k in (_kernel(x, x), _kernel(y, y)))
        values.append(float(within - 2 * _kernel(x, y).mean()))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


class PrecisionRecall(NamedTuple):
    """Both between 0 and 1."""

    precision: float
    recall: float


def precision_recall(real: Features, generated: Features, *, k: int = 3) -> PrecisionRecall:
    """The share of generated images inside the real images' manifold, and of real ones inside the generated (arXiv:1904.06991, Eq. 2).

    A manifold is the union of balls that reach each member's k-th nearest neighbour. Distances are taken by chunks, in float64.
    Raises: ValueError for unequal dimensions or no more than k samples.
    """
    _check(real, generated, least=k + 1)
    r, g = torch.from_numpy(real), torch.from_numpy(generated)
    return PrecisionRecall(_inside(g, r, _radii(r, k)), _inside(r, g, _radii(g, k)))


def _distances(chunk: Tensor, others: Tensor) -> Iterator[Float[Tensor, "c b"]]:
    """Of a few rows to all others, as few of these at a time: larger blocks leave holes between what is kept of each, which add up."""
    rows = chunk.double()
    return (torch.cdist(rows, block.double()) for block in torch.split(others, CHUNK))


def _radii(x: Tensor, k: int) -> Float[Tensor, " n"]:
    """Distance of each row to its k-th nearest other row (the nearest of all is itself)."""
    radii = []
    for chunk in torch.split(x, CHUNK):
        nearest = [apart.topk(min(k + 1, apart.shape[1]), largest=False).values for apart in _distances(chunk, x)]
        radii.append(torch.cat(nearest, dim=1).kthvalue(k + 1).values)
    return torch.cat(radii)


def _inside(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    found = 0
    for chunk in torch.split(x, CHUNK):
        near = [(apart <= reach).any(dim=1) for apart, reach in zip(_distances(chunk, centres), torch.split(radii, CHUNK), strict=True)]
        found += int(torch.stack(near).any(dim=0).sum())
    return found / len(x)


def bootstrap(statistic: Callable[[Rows], float], n: int, *, seed: int, resamples: int = 100) -> Iterator[float]:
    """The statistic of the numbers of ``n`` rows drawn with replacement from ``n``, one resample at a time: a caller may show progress."""
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        yield statistic(random.integers(n, size=n))


def interval(value: float, resampled: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Where the value would fall in ``level`` of repetitions with as many images.

    The resamples' quantiles, moved so that their median is the value: repeated rows push a Fréchet distance up, which is no uncertainty.
    """
    values = np.fromiter(resampled, dtype=np.float64)
    low, middle, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return float(value + low - middle), float(value + high - middle)


def _check(a: Features, b: Features, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} cannot be compared: take both from the same network")
    if min(len(a), len(b)) < least:
        raise ValueError(f"{min(len(a), len(b))} images are too few: this distance needs at least {least} on each side")
