"""A latent diffusion model: a frozen first stage, conditioners, a UNet and a diffusion process."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner
from latentworks.diffusion.process import Process
from latentworks.first_stage.autoencoder import Run, whole
from latentworks.first_stage.base import FirstStage
from latentworks.types import Batch, Cond, Gives, RandnLike
from latentworks.unet import UNet

__all__ = ["LatentDiffusion"]


class LatentDiffusion(nn.Module):
    """Images are diffused in the latent space of ``first_stage``, which stays frozen and in evaluation mode.

    Raises: ValueError when the UNet was built for other latents or other conditioners.
    """

    def __init__(self, first_stage: FirstStage, unet: UNet, process: Process, conditioners: Sequence[Conditioner] = ()) -> None:
        super().__init__()
        if unet.channels != first_stage.channels:
            channels = first_stage.channels
            raise ValueError(f"the UNet denoises {unet.channels} channels, but the first stage's latents have {channels}: make them equal")
        gives = self.sum_gives(conditioners)
        if unet.gives != gives:
            raise ValueError(f"the UNet was built for {unet.gives}, but these conditioners make {gives}: build it with their sum")
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.unet = unet
        self.process = process
        self.conditioners = nn.ModuleList(conditioners)

    @staticmethod
    def sum_gives(conditioners: Sequence[Conditioner]) -> Gives:
        """What all conditioners together give: channels and vectors add up; tokens are joined, so their widths must agree (ValueError)."""
        widths = sorted({conditioner.gives.context for conditioner in conditioners} - {0})
        if len(widths) > 1:
            raise ValueError(f"context: conditioners of widths {widths} cannot be joined as tokens: give them the same width")
        concat, vector = (sum(conditioner.gives[route] for conditioner in conditioners) for route in (0, 2))
        return Gives(concat, widths[0] if widths else 0, vector)

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """As usual, but the first stage stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def latent(self, batch: Batch, randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """`FirstStage.latent` of a batch."""
        return self.first_stage.latent(batch, randn_like)

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "b c H W"], normalised: bool = True, run: Run = whole) -> Float[Tensor, "b z h w"]:
        """Latent of an image in [-1, 1]: the mode of the posterior, normalised unless told otherwise. ``run``: how the encoder is run."""
        latent = self.first_stage.to_latent(self.first_stage.encode_raw(image, run))
        return latent if normalised else self.first_stage.unnormalise(latent)

    def condition(self, batch: Batch, where: Bool[Tensor, " b"] | None = None, run: Run = whole, size: Sequence[int] | None = None) -> Cond:
        """The condition of a batch, dropped ("no condition") where true. ``run``: how the encoder is run, for conditions that need it.

        ``size`` of the latent (height, width), for boxes that are painted. Raises: ValueError when a field is missing.
        """
        if size is not None:
            batch = {**batch, "size": (size[0], size[1])}
        conds = []
        for conditioner in self.conditioners:
            assert isinstance(conditioner, Conditioner)
            conds.append(conditioner(batch if where is None else conditioner.drop(batch, where), partial(self.encode, run=run)))
        return Cond.join(conds) if conds else Cond()

    def predict(self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], cond: Cond) -> Float[Tensor, "b c h w"]:
        """x0, in float32, as the network sees it in ``x_t`` at step ``t``; the network computes in the type of its weights."""
        return self.process.to_x0(self.unet(x_t.to(self.unet.conv_in.weight.dtype), t, cond), x_t, t)

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], batch: Batch, where: Bool[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The network's raw output, for training: the condition is computed inside, so that DDP sees every trained module."""
        out: Tensor = self.unet(x_t, t, self.condition(batch, where, size=x_t.shape[2:]))
        return out
