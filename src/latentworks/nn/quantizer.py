"""The codebook of a VQ first stage: nearest code, straight-through gradient, codebook and commitment loss, restart of dead codes."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Quantized", "VectorQuantizer"]

DISTANCES = 1 << 22  # entries of the distance matrix computed at a time: bounds memory at 16 MB whatever the image


class Quantized(NamedTuple):
    """``z``: the codes' vectors, passing gradients straight to the encoder; ``loss``; ``codes``: their indices."""

    z: Float[Tensor, "b c h w"]
    loss: Float[Tensor, ""]
    codes: Int[Tensor, "b h w"]


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by the nearest of ``codes`` learned ones (arXiv:1711.00937).

    ``legacy`` puts beta on the codebook term instead of the commitment term, as the authors' released models were trained.
    ``counts`` sums how often each code was used in training mode, until `restart_dead` or whoever owns the epoch zeroes it.
    """

    counts: Tensor

    def __init__(self, codes: int, channels: int, beta: float = 0.25, legacy: bool = False) -> None:
        if codes < 1 or channels < 1:
            raise ValueError(f"a codebook needs at least one code and one channel, not codes={codes}, channels={channels}")
        super().__init__()
        self.codebook = nn.Parameter(torch.empty(codes, channels).uniform_(-1 / codes, 1 / codes))
        self.codes, self.beta, self.legacy = codes, beta, legacy
        self.register_buffer("counts", torch.zeros(codes))

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        """Index of the nearest code for each vector; in float32 under autocast too, where bfloat16 would confuse neighbours."""
        flat = rearrange(z, "b c h w -> (b h w) c").float()
        codebook = self.codebook.float()
        square = codebook.square().sum(dim=1)
        with torch.autocast(z.device.type, enabled=False):  # |z|^2 is the same for all codes and left out
            rows = max(1, DISTANCES // len(codebook))
            codes = [torch.addmm(square, part, codebook.T, alpha=-2).argmin(dim=1) for part in torch.split(flat, rows)]
        return torch.cat(codes).view(z.shape[0], *z.shape[2:])

    def lookup(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """The codes' vectors, with gradient to the codebook."""
        return rearrange(nn.functional.embedding(codes, self.codebook), "b h w c -> b c h w").contiguous()

    def forward(self, z: Float[Tensor, "b c h w"]) -> Quantized:
        """Quantise. The loss is a mean over all elements, in float32."""
        codes = self.nearest(z)
        if self.training:
            self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))
        z, z_q = z.float(), self.lookup(codes).float()
        codebook_term = (z_q - z.detach()).square().mean()
        commitment = (z_q.detach() - z).square().mean()
        loss = commitment + self.beta * codebook_term if self.legacy else codebook_term + self.beta * commitment
        return Quantized(z + (z_q - z).detach(), loss, codes)

    def straight_through(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The nearest codes' vectors, whose gradient reaches z unchanged; nothing is counted."""
        return z + (self.lookup(self.nearest(z)) - z).detach()

    @torch.no_grad()
    def restart_dead(self, z: Float[Tensor, "b c h w"], generator: torch.Generator, threshold: float = 0.0) -> Int[Tensor, " n"]:
        """Move codes used at most ``threshold`` times since the last call onto random vectors of ``z``, and count afresh.

        A vector is drawn with a probability that grows as the square of its distance to the nearest code (as in k-means++), so that no code
        goes where one is already, e.g. to the white around a drawing.
        Returns: the indices of the moved codes, so that an optimiser's state for them can be cleared.
        """
        dead = (self.counts <= threshold).nonzero().flatten()
        vectors, codes = rearrange(z, "b c h w -> (b h w) c"), self.nearest(z).flatten()
        gaps = (vectors - self.codebook[codes]).double().square().sum(dim=1).cpu()
        replacement = len(dead) > int(gaps.count_nonzero())
        if len(dead):
            picks = torch.multinomial(gaps + 1e-12, len(dead), replacement, generator=generator).to(z.device)
            self.codebook[dead] = vectors[picks].to(self.codebook.dtype)
        self.counts.zero_()
        return dead
