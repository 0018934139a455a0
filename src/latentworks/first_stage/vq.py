"""The VQ-regularised first stage. Quantisation is the decoder's first layer, so that diffusion runs on continuous latents (Section 3.1)."""

from collections.abc import Callable
from typing import Literal, cast

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from latentworks.first_stage.autoencoder import AutoencoderConfig, Decoder, Encoder, Run, whole
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.nn.quantizer import VectorQuantizer
from latentworks.types import RandnLike

__all__ = ["VQAutoencoder", "VQConfig"]


class VQConfig(AutoencoderConfig):
    """A vector-quantised autoencoder. ``legacy``: beta weighs the codebook term, as in the authors' released models."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(default=8192, ge=1)
    beta: float = Field(default=0.25, ge=0)
    legacy: bool = False


class VQAutoencoder(FirstStage):
    """`encode_raw` gives the latent before quantisation; `decode` quantises. ``continuous``: the training path does not, yet."""

    continuous = False

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config.factor, config.embedding, config.in_channels)
        self.config = config
        self.encoder = Encoder(config, config.latent_channels)
        self.decoder = Decoder(config)
        self.quantizer = VectorQuantizer(config.codes, config.embedding, config.beta, config.legacy)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embedding, 1)
        self.post_quant_conv = nn.Conv2d(config.embedding, config.latent_channels, 1)

    def encode_raw(self, x: Float[Tensor, "b c H W"], run: Run = whole) -> Float[Tensor, "b r h w"]:
        """The latent before quantisation, float32. Raises: ValueError for a size f does not divide."""
        self.check_size(*x.shape[2:])
        z: Tensor = self.quant_conv(run(self.encoder, x.to(self.quant_conv.weight.dtype)))
        return z.float()

    def to_latent(self, raw: Float[Tensor, "b r h w"], randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """Normalised; there is nothing to sample."""
        return self.normalise(raw)

    def decode(self, z: Float[Tensor, "b z h w"], run: Run = whole) -> Float[Tensor, "b c H W"]:
        """Image of a normalised latent: quantised on the unnormalised scale, where the codebook lives."""
        z_q = self.quantizer.straight_through(self.unnormalise(z)).to(self.post_quant_conv.weight.dtype)
        return run(self.decoder, self.post_quant_conv(z_q))

    def forward(
        self, x: Float[Tensor, "b c h w"], randn_like: RandnLike | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Reconstruction:
        """Reconstruction; the regulariser is the codebook and commitment loss. While ``continuous``: 0, and no codes."""
        z = self.encode_raw(x)
        z = z if change is None else change(z)
        if self.continuous:
            return Reconstruction(self.decoder(self.post_quant_conv(z)), 0 * self.quantizer.codebook.sum())  # in the graph, for DDP
        quantized = self.quantizer(z)
        return Reconstruction(self.decoder(self.post_quant_conv(quantized.z)), quantized.loss, quantized.codes)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last convolution."""
        return cast(nn.Parameter, self.decoder.conv_out.weight)
