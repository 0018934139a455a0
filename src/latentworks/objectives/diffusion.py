"""The objective of a latent diffusion model: predict the target at a random step (Eq. 2 and 3 of the paper)."""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from latentworks.conditioners.text import aligned_texts
from latentworks.config import Config
from latentworks.diffusion.process import Process
from latentworks.model import LatentDiffusion
from latentworks.objectives.base import Loss, Objective
from latentworks.random import generator
from latentworks.types import Batch

__all__ = ["BUCKETS", "DiffusionObjective", "DiffusionObjectiveConfig", "held_out_noise"]

BUCKETS = 10
"""Timestep buckets of the held-out loss."""


def held_out_noise(
    process: Process, z0: Float[Tensor, "b z h w"], batch: Batch
) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "b z h w"]]]:
    """For each bucket the steps and the noise of a held-out batch, which are the same in every run."""
    generators = [generator("held-out", int(index)) for index in batch["index"]]
    for bucket in range(BUCKETS):
        low, high = bucket * process.T // BUCKETS, (bucket + 1) * process.T // BUCKETS
        t = torch.cat([torch.randint(low, high, (1,), generator=g) for g in generators]).to(z0.device)
        yield t, torch.stack([torch.randn(z0.shape[1:], generator=g) for g in generators]).to(z0)


class DiffusionObjectiveConfig(Config):
    """``loss``: l2 is the paper's; ``min_snr``: gamma of arXiv 2303.09556, or none; ``elbo_weight`` adds the variational bound's weighting;
    ``learn_variance`` learns log-variances per step, loss / exp(logvar) + logvar."""

    kind: Literal["diffusion"] = "diffusion"
    loss: Literal["l2", "l1"] = "l2"
    min_snr: float | None = Field(None, gt=0)
    elbo_weight: float = 0.0
    learn_variance: bool = False


class LogVariance(nn.Module):
    """One learned log-variance for each diffusion step (``logvar`` of the authors' LatentDiffusion)."""

    def __init__(self, T: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(T))

    def forward(self, t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The log-variance of each sample's step."""
        return self.value[t]


class DiffusionObjective(Objective):
    """Trains the UNet and all conditioners of a `LatentDiffusion` jointly; the first stage stays as it is, and so does aligned text, which
    has learnt from contrast before (`latentworks.objectives.alignment`)."""

    best = "loss"

    def __init__(self, config: DiffusionObjectiveConfig, model: LatentDiffusion, seed: int = 0) -> None:
        self.config, self.model, self.seed = config, model, seed
        for text in aligned_texts(model.conditioners):
            text.learn_to_align(False)
        self.modules = {"model": model}
        self.log_variance = LogVariance(model.process.T) if config.learn_variance else None
        if self.log_variance is not None:
            self.modules["log_variance"] = self.log_variance
        self.averaged = tuple(self.modules)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """One loss. Each sample's step, dropout, posterior and noise are drawn from generator(seed, "diffusion", step, index)."""
        generators = [generator(self.seed, "diffusion", step, int(index)) for index in batch["index"]]
        t = torch.cat([torch.randint(self.model.process.T, (1,), generator=g) for g in generators])
        dropped = torch.cat([torch.rand(1, generator=g) for g in generators])

        def randn_like(x: Tensor) -> Tensor:
            return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)

        with torch.no_grad():
            z0 = self.model.latent(batch, randn_like)
        for conditioner in self.model.conditioners:
            batch = conditioner.drop(batch, (dropped < conditioner.dropout).to(z0.device))  # type: ignore[operator]
        each, total = self.loss(z0, randn_like(z0), t.to(z0.device), batch)
        yield Loss(total, tuple(self.modules), {"loss": total.detach(), "loss_simple": each.detach().mean()})

    def loss(
        self, z0: Float[Tensor, "b z h w"], noise: Float[Tensor, "b z h w"], t: Int[Tensor, " b"], batch: Batch
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, ""]]:
        """Per-sample unweighted losses, and the weighted mean that is minimised."""
        process = self.model.process
        output = self.modules["model"](process.add_noise(z0, noise, t), t, batch).float()
        target = process.target(z0, noise, t)
        each = self._distance(output, target)
        weighted = each if self.config.min_snr is None else each * process.min_snr_weights(t, self.config.min_snr)
        if self.log_variance is not None:
            logvar = self.modules["log_variance"](t)
            weighted = weighted / logvar.exp() + logvar
        total = weighted.mean()
        if self.config.elbo_weight:
            total = total + self.config.elbo_weight * (process.elbo_weights(t) * each).mean()
        return each, total

    def _distance(self, output: Tensor, target: Tensor) -> Float[Tensor, " b"]:
        distance = F.mse_loss if self.config.loss == "l2" else F.l1_loss
        return reduce(distance(output, target, reduction="none"), "b c h w -> b", "mean")

    @torch.no_grad()
    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Mean loss over all steps and per bucket of steps, fixed noise: sample i sees one step in each of `BUCKETS` buckets."""
        process, sums, count = self.model.process, torch.zeros(BUCKETS), 0
        for batch in batches:
            z0 = self.model.latent(batch)
            cond = self.model.condition(batch, size=z0.shape[2:])
            for bucket, (t, noise) in enumerate(held_out_noise(process, z0, batch)):
                output = self.model.unet(process.add_noise(z0, noise, t), t, cond).float()
                sums[bucket] += self._distance(output, process.target(z0, noise, t)).sum().cpu()
            count += len(z0)
        figures = {f"loss_t{bucket * process.T // BUCKETS}": float(sums[bucket] / count) for bucket in range(BUCKETS)}
        return {"loss": float(sums.mean() / count), **figures}
