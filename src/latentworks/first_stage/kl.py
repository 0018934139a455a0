"""The KL-regularised first stage: a Gaussian posterior per latent pixel, pulled slightly towards the standard normal."""

from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentworks.first_stage.autoencoder import AutoencoderConfig, Decoder, Encoder, Run, whole
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.types import RandnLike

__all__ = ["KLAutoencoder", "KLConfig"]


SHARP = -6.0
"""Log-variance of a fresh posterior."""


class KLConfig(AutoencoderConfig):
    """A KL-regularised autoencoder."""

    kind: Literal["kl"] = "kl"


class KLAutoencoder(FirstStage):
    """`encode_raw` gives the posterior's moments: mean and log-variance (before clamping), joined along channels."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config.factor, config.embedding, config.in_channels)
        self.config = config
        self.encoder = Encoder(config, 2 * config.latent_channels)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.embedding, 1)
        self.post_quant_conv = nn.Conv2d(config.embedding, config.latent_channels, 1)
        with torch.no_grad():  # the weak regulariser lets posteriors become sharp; starting at deviation 1, latents drown in noise for long
            cast(Tensor, self.quant_conv.bias)[config.embedding :] = SHARP

    def encode_raw(self, x: Float[Tensor, "b c H W"], run: Run = whole) -> Float[Tensor, "b r h w"]:
        """Moments of the posterior, float32. Raises: ValueError for a size f does not divide."""
        self.check_size(*x.shape[2:])
        moments: Tensor = self.quant_conv(run(self.encoder, x.to(self.quant_conv.weight.dtype)))
        return moments.float()

    def to_latent(self, raw: Float[Tensor, "b r h w"], randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """Normalised posterior sample, or the mean without ``randn_like``."""
        return self.normalise(_sample(raw, randn_like))

    def decode(self, z: Float[Tensor, "b z h w"], run: Run = whole) -> Float[Tensor, "b c H W"]:
        """Image of a normalised latent."""
        return run(self.decoder, self.post_quant_conv(self.unnormalise(z).to(self.post_quant_conv.weight.dtype)))

    def forward(
        self, x: Float[Tensor, "b c h w"], randn_like: RandnLike | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Reconstruction:
        """Reconstruction from a sample; the regulariser is the KL divergence to N(0, 1), summed over c, h, w, averaged over the batch."""
        raw = self.encode_raw(x)
        mean, logvar = _moments(raw)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
        z = _sample(raw, randn_like)
        return Reconstruction(self.decoder(self.post_quant_conv(z if change is None else change(z))), kl)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last convolution."""
        return cast(nn.Parameter, self.decoder.conv_out.weight)


def _moments(raw: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = raw.float().chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def _sample(raw: Tensor, randn_like: RandnLike | None) -> Tensor:
    mean, logvar = _moments(raw)
    return mean if randn_like is None else mean + torch.exp(0.5 * logvar) * randn_like(mean)
