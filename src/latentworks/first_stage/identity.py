"""No first stage: diffusion in pixels (f = 1), the paper's baseline LDM-1."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.first_stage.autoencoder import Run, whole
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.types import RandnLike

__all__ = ["IdentityConfig", "IdentityFirstStage"]


class IdentityConfig(Config):
    """Images are their own latents."""

    kind: Literal["identity"] = "identity"
    in_channels: int = Field(default=3, ge=1)


class IdentityFirstStage(FirstStage):
    """Passes images through; its statistics are 0 and 1 from the start."""

    def __init__(self, config: IdentityConfig) -> None:
        super().__init__(1, config.in_channels, config.in_channels)
        self.config = config
        self.set_statistics(torch.zeros(config.in_channels), torch.ones(()))

    def encode_raw(self, x: Float[Tensor, "b c H W"], run: Run = whole) -> Float[Tensor, "b r h w"]:
        """x; there is nothing to run."""
        return x

    def to_latent(self, raw: Float[Tensor, "b r h w"], randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """Normalised x."""
        return self.normalise(raw)

    def decode(self, z: Float[Tensor, "b z h w"], run: Run = whole) -> Float[Tensor, "b c H W"]:
        """The inverse of `to_latent`."""
        return self.unnormalise(z)

    def forward(
        self, x: Float[Tensor, "b c h w"], randn_like: RandnLike | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Reconstruction:
        """x, with nothing to regularise."""
        return Reconstruction(x if change is None else change(x), x.new_zeros(()))

    @property
    def last_layer(self) -> nn.Parameter:
        """Raises: ValueError, as there is nothing to train."""
        raise ValueError("the identity first stage has no parameters: it cannot be trained, use it as it is")
