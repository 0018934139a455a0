"""What moves the weights: Adam, AdamW, and Muon, which orthogonalises the step of each layer's matrix."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

_MOMENTUM, _NARROW, _SMALL = 0.95, 16, 160
_STACKED = 1 << 20  # numbers of matrices of one shape that are stepped together
_POLYNOMIALS = (
    (7.9515, -21.2759, 14.2982),
    (3.8279, -2.5946, 0.4476),
    (3.3334, -2.2904, 0.4216),
    (2.4554, -1.7021, 0.3764),
)
"""Odd ones of degree 5 that bring [0.004, 1.05] to within 0.22 of 1 (Polar Express, arXiv:2505.16932).

Each is the one nearest to 1 on what the polynomial before it leaves, widened by a twentieth on both sides: past it they grow without bound,
and bfloat16 does not keep singular values within 1.
"""


def orthogonalised(matrices: Float[Tensor, "n a b"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "n a b"]:
    """About the nearest matrix to each whose singular values are all 1, by a Newton-Schulz iteration in ``dtype``; zero stays zero.

    For those at least twice as long as wide the iteration runs on their Gram matrices, which are smaller, and in float32, which it needs;
    small ones are no faster in another either.
    """
    short, long = sorted(matrices.shape[1:])
    through_gram = long >= 2 * short
    tall = matrices.shape[1] > short
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.to(torch.float32 if through_gram or short < _SMALL else dtype)
    x = _through_gram(x) if through_gram else _iterated(x)
    return x.mT if tall else x


def _iterated(x: Tensor) -> Tensor:
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _through_gram(x: Tensor) -> Tensor:
    """The same: every iterate is a polynomial of the Gram matrix times ``x``, and so is its Gram matrix."""
    gram = x @ x.mT
    product: Tensor | None = None
    for a, b, c in _POLYNOMIALS:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        gram = factor @ gram @ factor
    assert product is not None
    return product @ x


def _is_matrix(p: Tensor) -> bool:
    return p.ndim >= 2 and min(p.shape[0], p.numel() // p.shape[0]) >= _NARROW


class Muon(torch.optim.AdamW):
    """Layers' weights follow their momentum, orthogonalised; embeddings, norms, biases and what has a side under 16 follow AdamW.

    A convolution's weight is the matrix "out x (in k k)". The step is scaled to the size of AdamW's (0.2 sqrt of the longer side,
    arXiv:2502.16982), so that one learning rate and weight decay serve both. ``dtype``: of the iteration.
    """

    def __init__(
        self, module: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, dtype: torch.dtype, **kernel: bool
    ) -> None:
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if _is_matrix(p) and id(p) not in tables]
        chosen = {id(p) for p in matrices}
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in chosen]}, {"params": matrices}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, **kernel)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; gradients have been computed."""
        groups = self.param_groups
        try:
            self.param_groups = groups[:1]
            super().step()
        finally:
            self.param_groups = groups
        group = groups[1]
        self._follow([p for p in group["params"] if p.grad is not None], float(group["lr"]), float(group["weight_decay"]))

    def _follow(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        alike: dict[tuple[torch.Size, torch.device], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in matrices:
            assert p.grad is not None
            state = self.state[p]
            if not state:  # "step": AdamW looks for it when a state is loaded
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(p))
            momentum = state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
            ahead = p.grad.lerp(momentum, _MOMENTUM).flatten(1)
            alike[ahead.shape, ahead.device].append((p, ahead))
            p.mul_(1 - lr * weight_decay)
        for (shape, _), pairs in alike.items():
            together = max(1, _STACKED // shape.numel())
            for first in range(0, len(pairs), together):
                chunk = pairs[first : first + together]
                steps = orthogonalised(torch.stack([ahead for _, ahead in chunk]), self.dtype)
                for (p, _), step in zip(chunk, steps, strict=True):
                    p.add_(step.view_as(p), alpha=-0.2 * lr * math.sqrt(max(shape)))
