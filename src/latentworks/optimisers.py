"""What moves the weights: Adam, AdamW, and Muon, which orthogonalises the step of each layer's matrix."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalised"]

_MOMENTUM, _NARROW = 0.95, 16
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Of Newton-Schulz's iteration, steepest at zero: five of them bring every singular value between 0.7 and 1.2 (Jordan et al., 2024)."""


def orthogonalised(matrix: Float[Tensor, "a b"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "a b"]:
    """About the nearest matrix whose singular values are all 1, in ``dtype``; zero stays zero."""
    a, b, c = _POLYNOMIAL
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


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
        for p in matrices:
            assert p.grad is not None
            state = self.state[p]
            if not state:  # "step": AdamW looks for it when a state is loaded
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(p))
            momentum = state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
            ahead = p.grad.lerp(momentum, _MOMENTUM).flatten(1)
            p.mul_(1 - lr * weight_decay)
            p.add_(orthogonalised(ahead, self.dtype).view_as(p), alpha=-0.2 * lr * math.sqrt(max(ahead.shape)))
