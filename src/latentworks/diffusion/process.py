"""The diffusion process: how noise is added at step t, what a network is asked to predict, and how its output becomes x0."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from latentworks.config import Config

__all__ = ["Prediction", "Process", "ProcessConfig", "Spacing"]

Prediction = Literal["eps", "x0", "v"]
Spacing = Literal["leading", "trailing"]


class ProcessConfig(Config):
    """``scaled_linear`` is linear in sqrt(beta): what the authors' files call "linear". ``linear`` is linear in beta."""

    schedule: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    beta_start: float = Field(0.0015, gt=0, lt=1)  # not used by the cosine schedule
    beta_end: float = Field(0.0195, gt=0, lt=1)
    T: int = Field(1000, ge=2)
    prediction: Prediction = "eps"
    zero_terminal_snr: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ProcessConfig":
        if self.beta_end < self.beta_start:
            raise ValueError(f"beta_end {self.beta_end} is below beta_start {self.beta_start}: betas grow with t, swap them")
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("zero_terminal_snr leaves no signal at the last step, so x0 cannot follow from eps: use prediction v or x0")
        return self


class Process:
    """x_t = alpha_t x0 + sigma_t eps for t = 0..T-1, with t = -1 the clean data (alpha 1, sigma 0). Stateless.

    Attributes: ``config``; ``T``; ``prediction``; ``alpha`` and ``sigma``, float64 tables on the CPU of T + 1 values whose last one is that
    of t = -1, so that plain indexing is right for every t.
    """

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.T = config.T
        self.prediction: Prediction = config.prediction
        alpha = torch.cumprod(1 - _betas(config), dim=0).sqrt()
        if config.zero_terminal_snr:  # Algorithm 1, arXiv:2305.08891: shift the last alpha to 0, scale the first back to what it was
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        self.alpha: Float[Tensor, " T+1"] = torch.cat([alpha, torch.ones(1, dtype=torch.float64, device="cpu")])
        self.sigma: Float[Tensor, " T+1"] = (1 - self.alpha**2).sqrt()

    def level(self, t: int) -> tuple[float, float]:
        """(alpha_t, sigma_t) as Python floats, for the coefficients of samplers."""
        return float(self.alpha[t]), float(self.sigma[t])

    def at(self, t: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """(alpha_t, sigma_t) as float32 tensors on t's device that broadcast over images."""
        alpha, sigma = self.alpha.float().to(t.device)[t], self.sigma.float().to(t.device)[t]
        return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def add_noise(self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """x_t ~ q(x_t | x0), in float32."""
        alpha, sigma = self.at(t)
        return alpha * x0.float() + sigma * noise.float()

    def target(self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """What the network should output for `add_noise`'s x_t, in float32; v = alpha eps - sigma x0 (arXiv:2202.00512)."""
        if self.prediction == "eps":
            return noise.float()
        if self.prediction == "x0":
            return x0.float()
        alpha, sigma = self.at(t)
        return alpha * noise.float() - sigma * x0.float()

    def to_x0(self, output: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The network's output as x0, in float32 whatever the network's dtype: 1 / alpha reaches 84 at the last step."""
        if self.prediction == "x0":
            return output.float()
        alpha, sigma = self.at(t)
        if self.prediction == "eps":
            return (x_t.float() - sigma * output.float()) / alpha
        return alpha * x_t.float() - sigma * output.float()

    def to_eps(self, x0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The noise that x0 implies in x_t, in float32. Undefined at t = -1, where there is none."""
        alpha, sigma = self.at(t)
        return (x_t.float() - alpha * x0.float()) / sigma

    def timesteps(self, steps: int, spacing: Spacing = "leading") -> list[int]:
        """``steps`` + 1 strictly decreasing values of t: where to evaluate, then where to stop.

        "leading": floor(i T / steps) + 1 down to 1, stopping at 0, which equals the authors' clock where steps divides T; with
        steps = T every t is used (no + 1) and the stop is -1. "trailing": from T - 1, stopping at -1 (arXiv:2305.08891).
        Raises: ValueError unless 1 <= steps <= T.
        """
        if not 1 <= steps <= self.T:
            raise ValueError(f"steps: {steps} is not possible, this process has {self.T} steps: use 1 to {self.T}")
        if spacing == "trailing":
            return [round(i * self.T / steps) - 1 for i in range(steps, 0, -1)] + [-1]
        if spacing != "leading":
            raise ValueError(f"spacing: {spacing!r} is unknown: use 'leading' or 'trailing'")
        if steps == self.T:
            return list(range(self.T - 1, -2, -1))
        return [i * self.T // steps + 1 for i in range(steps - 1, -1, -1)] + [0]

    def snr(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """alpha^2 / sigma^2, float32; infinite at t = -1."""
        return ((self.alpha / self.sigma) ** 2).float().to(t.device)[t]

    def elbo_weights(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weights, float32, that turn the squared error of this prediction into the terms of the variational bound.

        For x0 it is (SNR(t-1) - SNR(t)) / 2 (arXiv:2107.00630); an eps error is alpha / sigma times an x0 error and a v error
        1 / sigma times it, which gives the others. For eps this equals the authors' ``lvlb_weights``; their x0 branch,
        ``0.5 * sqrt(abar) / (2. * 1 - abar)``, divides by 2 - abar for want of brackets and is not followed. As theirs, the weight
        at t = 0, infinite, is replaced by that at t = 1.
        """
        snr = (self.alpha[:-1] / self.sigma[:-1]) ** 2
        weights = torch.cat([snr[:1], (snr[:-1] - snr[1:]) / 2])
        weights = weights * self._relative_to_x0(snr)
        weights[0] = weights[1]
        return weights.float().to(t.device)[t]

    def min_snr_weights(self, t: Int[Tensor, " b"], gamma: float) -> Float[Tensor, " b"]:
        """min(SNR, gamma) on the x0 error, carried over to this prediction (arXiv:2303.09556, gamma 5 there), float32.

        With zero terminal SNR the last step gets weight 0, as in the paper's formula.
        """
        if not gamma > 0:
            raise ValueError(f"gamma: {gamma} must be above 0 (arXiv:2303.09556 uses 5)")
        snr = (self.alpha[:-1] / self.sigma[:-1]) ** 2
        return (snr.clamp(max=gamma) * self._relative_to_x0(snr)).float().to(t.device)[t]

    def _relative_to_x0(self, snr: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Squared x0 error / squared error of this prediction."""
        if self.prediction == "x0":
            return torch.ones_like(snr)
        return 1 / snr if self.prediction == "eps" else 1 / (snr + 1)


def _betas(config: ProcessConfig) -> Float[Tensor, " T"]:
    start, end, T = config.beta_start, config.beta_end, config.T
    if config.schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64, device="cpu") ** 2
    if config.schedule == "linear":
        return torch.linspace(start, end, T, dtype=torch.float64, device="cpu")
    angle = (torch.arange(T + 1, dtype=torch.float64, device="cpu") / T + 0.008) / 1.008 * torch.pi / 2  # Eq. 17, arXiv:2102.09672
    return (1 - torch.cos(angle[1:]) ** 2 / torch.cos(angle[:-1]) ** 2).clamp(0, 0.999)
