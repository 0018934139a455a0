"""First stages: images to latents and back. A closed family: KL, VQ, identity."""

from typing import Annotated

from pydantic import Field

from latentworks.first_stage.autoencoder import AutoencoderConfig
from latentworks.first_stage.base import FirstStage, Reconstruction
from latentworks.first_stage.identity import IdentityConfig, IdentityFirstStage
from latentworks.first_stage.kl import KLAutoencoder, KLConfig
from latentworks.first_stage.vq import VQAutoencoder, VQConfig

__all__ = [
    "AutoencoderConfig",
    "FirstStage",
    "FirstStageConfig",
    "IdentityConfig",
    "IdentityFirstStage",
    "KLAutoencoder",
    "KLConfig",
    "Reconstruction",
    "VQAutoencoder",
    "VQConfig",
    "build_first_stage",
]

FirstStageConfig = Annotated[KLConfig | VQConfig | IdentityConfig, Field(discriminator="kind")]


def build_first_stage(config: KLConfig | VQConfig | IdentityConfig) -> KLAutoencoder | VQAutoencoder | IdentityFirstStage:
    """The first stage of a config, with fresh weights."""
    match config:
        case KLConfig():
            return KLAutoencoder(config)
        case VQConfig():
            return VQAutoencoder(config)
        case IdentityConfig():
            return IdentityFirstStage(config)
