"""What a first stage is: images to latents and back, with the statistics that make latents zero-mean and unit-variance."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentworks.first_stage.autoencoder import Run, whole
from latentworks.types import Batch, RandnLike

__all__ = ["FirstStage", "Reconstruction"]


DECODER = ("decoder.", "post_quant_conv.")
"""How the names of weights begin that make images of latents."""


class Reconstruction(NamedTuple):
    """What the training path of a first stage gives."""

    image: Float[Tensor, "b c h w"]
    regulariser: Float[Tensor, ""]  # KL: sum over c, h, w, mean over the batch; VQ: codebook + commitment loss; identity: 0
    codes: Int[Tensor, "b h w"] | None = None  # VQ: the codebook indices


class FirstStage(nn.Module, ABC):
    """Abstract. Images ``b in_channels H W`` in [-1, 1] <-> normalised latents ``b channels H/f W/f``.

    Attributes: ``factor`` f; ``channels`` of the latent; ``in_channels`` of the image; buffers ``mean`` (channels,) and ``std`` ().
    A NaN ``std`` means "statistics not computed yet": `to_latent` and `decode` then refuse (see `normalised`).
    """

    factor: int
    channels: int
    in_channels: int
    mean: Tensor
    std: Tensor

    def __init__(self, factor: int, channels: int, in_channels: int) -> None:
        super().__init__()
        self.factor, self.channels, self.in_channels = factor, channels, in_channels
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.tensor(float("nan")))

    @property
    def normalised(self) -> bool:
        """Whether latent statistics are known."""
        return not bool(torch.isnan(self.std))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store per-channel means (channels,) and the scalar std; ``0, 1`` says explicitly "none"."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def freeze_encoder(self) -> None:
        """Let only what makes images of latents be trained: latents stay what they are."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(DECODER))

    @torch.no_grad()
    def take_decoder(self, other: "FirstStage") -> None:
        """Make images of latents as ``other`` does. Raises: ValueError unless both make the same latents of images."""
        own, given = self.state_dict(), other.state_dict()
        latents = [key for key in own if not key.startswith((*DECODER, "mean", "std"))]
        if own.keys() != given.keys() or not all(torch.equal(own[key], given[key]) for key in latents):
            raise ValueError("these make other latents: train the decoder from this first stage (--from), with objective.decoder_only=true")
        for key in own.keys() - set(latents) - {"mean", "std"}:
            own[key].copy_(given[key])

    def normalise(self, z: Tensor) -> Tensor:
        """Unscaled latent -> zero mean, unit variance. Raises: ValueError without statistics."""
        if not self.normalised:
            raise ValueError(
                "this first stage has no latent statistics: finish its training (lw train computes them) or call set_statistics"
            )
        return (z - self.mean.view(-1, 1, 1)) / self.std

    def unnormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        if not self.normalised:
            raise ValueError(
                "this first stage has no latent statistics: finish its training (lw train computes them) or call set_statistics"
            )
        return z * self.std + self.mean.view(-1, 1, 1)

    def check_size(self, height: int, width: int) -> None:
        """Raises: ValueError naming the nearest valid sizes if H or W is not a multiple of f."""
        for name, size in (("height", height), ("width", width)):
            if size % self.factor:
                low = size // self.factor * self.factor
                near = " or ".join(str(s) for s in (low, low + self.factor) if s)
                raise ValueError(f"{name} {size} is not divisible by the first stage's factor f = {self.factor}: use {near}")

    @torch.no_grad()
    def latent(self, batch: Batch, randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """The normalised latent of a batch: its ``latent``, else from ``raw`` (a cache) or ``image``; a sample with ``randn_like``.

        Raises: ValueError when it has none of these.
        """
        if "latent" in batch:
            return batch["latent"]
        if "raw" not in batch and "image" not in batch:
            raise ValueError("image: the batch has neither an image, nor raw, nor latent: give one of them")
        raw = batch["raw"] if "raw" in batch else self.encode_raw(batch["image"])
        return self.to_latent(raw, randn_like)

    @abstractmethod
    def encode_raw(self, x: Float[Tensor, "b c H W"], run: Run = whole) -> Float[Tensor, "b r h w"]:
        """Deterministic and cacheable. KL: moments (mean, log-variance); VQ: the latent before quantisation; identity: x.

        ``run``: how the encoder is run, e.g. `latentworks.first_stage.tiled.in_tiles`.
        """

    @abstractmethod
    def to_latent(self, raw: Float[Tensor, "b r h w"], randn_like: RandnLike | None = None) -> Float[Tensor, "b z h w"]:
        """Normalised latent from `encode_raw`'s output; KL: a posterior sample with ``randn_like``, else the mode."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "b z h w"], run: Run = whole) -> Float[Tensor, "b c H W"]:
        """Normalised latent -> image; VQ quantises here (straight-through in every mode). ``run``: how the decoder is run."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b c h w"], randn_like: RandnLike | None = None, change: Callable[[Tensor], Tensor] | None = None
    ) -> Reconstruction:
        """The training path: encode, regularise, decode. KL samples with ``randn_like`` (None: the mode).

        ``change``: what is done to the latent before it is decoded (VQ: and quantised); the image is then of that latent's size.
        """

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive adversarial weight balances gradients (decoder's last convolution)."""
