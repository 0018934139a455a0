"""The objective of a classifier of noisy latents: cross-entropy at a random step of the process that it is to guide."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from latentworks.noisy_classifier import NoisyClassifier
from latentworks.objectives.base import Loss, Objective, keyed_noise
from latentworks.objectives.diffusion import BUCKETS, held_out_noise
from latentworks.random import generator
from latentworks.types import Batch

__all__ = ["ClassifierObjective"]


class ClassifierObjective(Objective):
    """Trains the network of a `NoisyClassifier`; the first stage stays as it is."""

    best = "loss"
    averaged = ("model",)

    def __init__(self, model: NoisyClassifier, seed: int = 0) -> None:
        self.model, self.seed, self.noise = model, seed, keyed_noise(seed)
        self.modules = {"model": model}

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """One loss. Each sample's step, posterior and noise are functions of (seed, step, index)."""
        steps = [torch.randint(self.model.process.T, (1,), generator=generator(self.seed, "t", step, int(i))) for i in batch["index"]]
        z0 = self.model.first_stage.latent(batch, self.noise("posterior", step, batch))
        t = torch.cat(steps).to(z0.device)
        x_t = self.model.process.add_noise(z0, self.noise("noise", step, batch)(z0), t)
        logits, label = self.modules["model"](x_t, t), batch["label"].to(z0.device)
        loss = F.cross_entropy(logits, label)
        yield Loss(loss, ("model",), {"loss": loss.detach(), "accuracy": (logits.argmax(1) == label).float().mean()})

    @torch.no_grad()
    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Loss and accuracy over all steps and per bucket of steps, fixed noise: sample i sees one step in each of `BUCKETS` buckets."""
        process, sums, count = self.model.process, {"loss": torch.zeros(BUCKETS), "accuracy": torch.zeros(BUCKETS)}, 0
        for batch in batches:
            z0 = self.model.first_stage.latent(batch)
            label = batch["label"].to(z0.device)
            for bucket, (t, noise) in enumerate(held_out_noise(process, z0, batch)):
                logits = self.model.logits(process.add_noise(z0, noise, t), t)
                sums["loss"][bucket] += F.cross_entropy(logits, label, reduction="sum").cpu()
                sums["accuracy"][bucket] += (logits.argmax(1) == label).sum().cpu()
            count += len(z0)
        buckets = {f"{key}_t{i * process.T // BUCKETS}": float(value[i] / count) for key, value in sums.items() for i in range(BUCKETS)}
        return {key: float(value.mean() / count) for key, value in sums.items()} | buckets
