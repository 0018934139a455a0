"""The objective of a first stage (Eq. 25 of the paper): reconstruction + perceptual + adversarial + regulariser."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import reduce
from pydantic import Field
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.first_stage.vq import VQAutoencoder
from latentworks.nn.discriminator import DiscriminatorConfig
from latentworks.nn.perceptual import EfficientNetPerceptualConfig, PerceptualConfig
from latentworks.objectives.base import Loss, Noise, Objective, Upkeep, keyed_noise, mean_over_processes, rows_of_processes
from latentworks.objectives.equivariance import Change, draw_change
from latentworks.random import generator
from latentworks.types import Batch

__all__ = ["FirstStageObjective", "FirstStageObjectiveConfig", "adaptive_weight"]


class FirstStageObjectiveConfig(Config):
    """The paper's constants are the defaults.

    ``reduction``: the authors sum the reconstruction over c, h, w for KL and average it for VQ: it sets the regulariser's relative weight.
    ``regulariser_weight``: 1e-6 for KL (on the sum), 1 for VQ. ``discriminator_start``: the fraction of the run at which the autoencoder
    begins to see the discriminator, which has trained alone for ``discriminator_warmup`` of the run. ``adversarial_weight`` 0: no GAN.
    ``second_forward``: the authors' loop runs the autoencoder again before the discriminator's step; we reuse the first forward.
    ``restart_dead_after``: VQ codes unused for so many steps restart from encoder outputs; 0: never. An epoch's steps are a
    good value: the share of codes used in it is logged then. ``quantise_from``: a VQ stage is a plain autoencoder for this fraction of the
    run; then its codes are placed on what the encoder has learnt by then, instead of both chasing each other from noise.
    ``equivariance``: the share of steps at which latents are flipped and made smaller, and so are the images they are to give (EQ-VAE).
    ``latent_noise``: latents are decoded under noise of a standard deviation drawn for each image between 0 and so many of their own: the
    decoder learns to see past what a diffusion model gets wrong (RAE, arXiv:2510.11690). ``decoder_only``: the rest keeps its weights, so
    latents stay what they are, and models in them may be given the new decoder (as of Stable Diffusion's later ones).
    """

    kind: Literal["first_stage"] = "first_stage"
    reconstruction: Literal["l1", "l2"] = "l1"
    reduction: Literal["sum", "mean"] = "sum"
    perceptual: PerceptualConfig = EfficientNetPerceptualConfig()
    perceptual_weight: float = Field(1.0, ge=0)
    regulariser_weight: float = Field(1e-6, ge=0)
    log_variance: float = 0.0
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    adversarial_weight: float = Field(0.5, ge=0)
    adversarial_loss: Literal["hinge", "vanilla"] = "hinge"
    discriminator_start: float = 0.5
    discriminator_warmup: float = Field(0.02, ge=0)
    second_forward: bool = False
    restart_dead_after: int = Field(0, ge=0)
    quantise_from: float = Field(0.0, ge=0, lt=1)
    equivariance: float = Field(0.0, ge=0, le=1)
    latent_noise: float = Field(0.0, ge=0)
    decoder_only: bool = False


def adaptive_weight(nll: Tensor, adversarial: Tensor, image: Tensor, last_layer: Tensor) -> tuple[Tensor, Tensor]:
    """The weight that makes both losses pull equally on the last layer: ||d nll|| / (||d adversarial|| + 1e-4), at most 1e4.

    Also gives the gradient of nll at the image and frees the graph between them: the caller need not walk the perceptual network again.
    Source: taming-transformers, VQLPIPSWithDiscriminator.calculate_adaptive_weight.
    """
    (from_nll,) = torch.autograd.grad(nll, image)
    (from_adversarial,) = torch.autograd.grad(adversarial, image, retain_graph=True)
    norms = []
    for gradient in (from_nll, from_adversarial):
        (at_layer,) = torch.autograd.grad(image, last_layer, gradient, retain_graph=True)
        norms.append(mean_over_processes(at_layer).norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach(), from_nll


class FirstStageObjective(Objective):
    """Trains ``first_stage`` and ``discriminator`` over ``steps`` steps. Raises: ValueError if the discriminator could never start."""

    best = "reconstruction"
    averaged = ("first_stage",)

    def __init__(
        self,
        config: FirstStageObjectiveConfig,
        first_stage: FirstStage,
        perceptual: nn.Module | None,
        discriminator: nn.Module | None,
        steps: int,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> None:
        self.config, self.first_stage, self.perceptual, self.seed = config, first_stage, perceptual, seed
        self.discriminator = discriminator if config.adversarial_weight > 0 else None
        self.noise = noise or keyed_noise(seed)
        self.modules = {"first_stage": first_stage}
        if config.decoder_only:
            first_stage.freeze_encoder()
        if self.discriminator is not None:
            if not 0 <= config.discriminator_start < 1:
                raise ValueError(
                    f"objective.discriminator_start = {config.discriminator_start} is a fraction of the run: at 1 or more the "
                    "discriminator never starts; use e.g. 0.5, or adversarial_weight = 0 for no discriminator"
                )
            self.modules["discriminator"] = self.discriminator
        self.adversarial_from = int(config.discriminator_start * steps)  # rounded down, so that it always starts
        self.restart_until = 0.9 * steps
        self.quantise_from = 0 if config.decoder_only else round(config.quantise_from * steps)
        self.discriminator_from = round((config.discriminator_start - config.discriminator_warmup) * steps)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """The autoencoder's loss, then, once the discriminator trains, the discriminator's on the same reconstruction."""
        image, forward = batch["image"], self.modules["first_stage"]
        change = draw_change(self.config.equivariance, self.seed, step)
        x = image if change is None else change(image, self.first_stage.factor)
        if isinstance(self.first_stage, VQAutoencoder):
            self.first_stage.continuous = step < self.quantise_from
        disturb = self._disturb(change, step, batch)
        reconstruction: Reconstruction = forward(image, self.noise("posterior", step, batch), disturb)
        yield self._autoencoder(x, reconstruction, step)
        if self.discriminator is None or step < self.discriminator_from:
            return
        if self.config.second_forward:  # not under no_grad, where attention takes a kernel that rounds otherwise
            reconstruction = self.first_stage(image, self.noise("posterior again", step, batch), disturb)
        yield self._discriminator(x, reconstruction.image.detach().float())

    def _disturb(self, change: Change | None, step: int, batch: Batch) -> Callable[[Tensor], Tensor] | None:
        """What is done to latents before they are decoded: the change, then noise."""
        if not self.config.latent_noise:
            return None if change is None else lambda z: change(z)
        shares = [torch.rand(1, 1, 1, generator=generator(self.seed, "latent noise", step, int(index))) for index in batch["index"]]
        randn_like = self.noise("latent noise", step, batch)

        def disturb(z: Tensor) -> Tensor:
            z = z if change is None else change(z)
            with torch.no_grad():
                spread = (z - z.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt()
                noise = self.config.latent_noise * torch.stack(shares).to(z) * spread * randn_like(z)
            return z + noise

        return disturb

    def _nll(self, x: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction term, L1 + perceptual per element, scaled by the (constant) log-variance; and its parts."""
        distance = F.l1_loss if self.config.reconstruction == "l1" else F.mse_loss
        each = distance(image, x, reduction="none")
        parts = {"l1" if self.config.reconstruction == "l1" else "l2": each.mean().detach()}
        if self.perceptual is not None and self.config.perceptual_weight:
            perceptual = self.perceptual(image, x)
            parts["perceptual"] = perceptual.mean().detach()
            each = each + self.config.perceptual_weight * perceptual.view(-1, 1, 1, 1)
        parts["reconstruction"] = each.mean().detach()
        variance = torch.tensor(self.config.log_variance).exp()
        nll = each / variance + self.config.log_variance
        return (nll.sum() / len(x) if self.config.reduction == "sum" else nll.mean()), parts

    def _autoencoder(self, x: Tensor, reconstruction: Reconstruction, step: int) -> Loss:
        image = reconstruction.image.float()
        regulariser = reconstruction.regulariser.float()
        nll, log = self._nll(x, image)
        regularisation = self.config.regulariser_weight * regulariser
        total = nll + regularisation
        log |= {"nll": nll.detach(), "regulariser": regulariser.detach()}
        if self.discriminator is not None and step >= self.adversarial_from:
            self.discriminator.requires_grad_(False)  # while the graph is built: this loss trains the autoencoder alone
            adversarial = -self.discriminator(image).float().mean()
            self.discriminator.requires_grad_(True)
            weight, from_nll = adaptive_weight(nll, adversarial, image, self.first_stage.last_layer)
            weight = weight * self.config.adversarial_weight
            known = (image * from_nll).sum()  # has the gradient of nll, known by now
            total = known + (nll - known).detach() + regularisation + weight * adversarial
            log |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        return Loss(total, ("first_stage",), {"loss": total.detach(), **log})

    def _discriminator(self, x: Tensor, fake: Tensor) -> Loss:
        forward = self.modules["discriminator"]
        real_logits, fake_logits = forward(x).float(), forward(fake).float()
        if self.config.adversarial_loss == "hinge":
            value = 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())
        else:
            value = 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
        right = 0.5 * ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean())
        log = {"discriminator": value, "logits_real": real_logits.mean(), "logits_fake": fake_logits.mean(), "discriminator_right": right}
        return Loss(value, ("discriminator",), {key: figure.detach() for key, figure in log.items()})

    @torch.no_grad()
    def after_step(self, step: int, batch: Batch) -> Upkeep:
        """VQ: every ``restart_dead_after`` steps the share of codes used since then is logged, and the others restart from this batch.

        Not in the last tenth of the run: what restarts there has no time to find its place.
        """
        every = self.config.restart_dead_after
        if (
            self.config.decoder_only
            or not isinstance(self.first_stage, VQAutoencoder)
            or not (every or self.quantise_from)
            or step + 1 < self.quantise_from
        ):
            return Upkeep()
        quantizer = self.first_stage.quantizer
        if step + 1 == self.quantise_from:  # no code has been used, so all are placed
            return self._restart(batch, step, {})
        if not every:
            return Upkeep()
        quantizer.counts.copy_(mean_over_processes(quantizer.counts))
        if (step + 1) % every:
            return Upkeep()
        log = {"codebook_use": (quantizer.counts > 0).float().mean()}
        if step >= self.restart_until:
            quantizer.counts.zero_()
            return Upkeep(log)
        return self._restart(batch, step, log)

    def _restart(self, batch: Batch, step: int, log: dict[str, Tensor]) -> Upkeep:
        assert isinstance(self.first_stage, VQAutoencoder)
        quantizer = self.first_stage.quantizer
        z = rows_of_processes(self.first_stage.encode_raw(batch["image"]))
        return Upkeep(log, quantizer.codebook, quantizer.restart_dead(z, generator(self.seed, "restart", step)))

    @torch.no_grad()
    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """L1, perceptual, PSNR in dB (mean over images), regulariser and, for VQ, the share of codes in use."""
        sums: dict[str, float] = {}
        count, used = 0, None
        for batch in batches:
            x = batch["image"]
            reconstruction = self.first_stage(x)
            image = reconstruction.image.float().clamp(-1, 1)
            _, figures = self._nll(x, image)
            figures["psnr"] = (-10 * torch.log10(reduce((image - x) ** 2, "b c h w -> b", "mean").clamp_min(1e-10) / 4)).mean()
            figures["regulariser"] = reconstruction.regulariser
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + float(value) * len(x)
            count += len(x)
            if reconstruction.codes is not None and isinstance(self.first_stage, VQAutoencoder):
                codes = torch.bincount(reconstruction.codes.flatten(), minlength=self.first_stage.quantizer.codes)
                used = codes if used is None else used + codes
        figures_out = {key: value / count for key, value in sums.items()}
        return figures_out if used is None else {**figures_out, "codebook_use": float((used > 0).float().mean())}
