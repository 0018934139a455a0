"""Latent statistics folded into weights, for formats that have one scale for all channels, or none, where we have a mean for each."""

import torch
from torch import Tensor

from latentworks.first_stage import KLAutoencoder, VQAutoencoder

__all__ = ["fold"]


@torch.no_grad()
def fold(first_stage: KLAutoencoder | VQAutoencoder, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """New values of the few weights, by key, that turn the latents z of a first stage into (z - mean) / std; images stay what they are.

    ``mean`` (channels,) and ``std`` () are usually its own statistics, or its means and 1 where the format has a scale. Encoding, decoding
    and, for VQ, quantisation change together, so only rounding differs; a log-variance that was clamped is clamped elsewhere.
    """
    channels, mean, std = first_stage.channels, mean.double().cpu(), std.double().cpu()
    before, after = first_stage.quant_conv, first_stage.post_quant_conv
    weights = {
        "quant_conv.weight": before.weight,
        "quant_conv.bias": before.bias,
        "post_quant_conv.weight": after.weight,
        "post_quant_conv.bias": after.bias,
    }
    if isinstance(first_stage, VQAutoencoder):
        weights["quantizer.codebook"] = first_stage.quantizer.codebook
    new = {key: value.detach().cpu().double() for key, value in weights.items() if value is not None}
    new["post_quant_conv.bias"] += new["post_quant_conv.weight"][:, :, 0, 0] @ mean
    new["post_quant_conv.weight"] *= std
    new["quant_conv.weight"][:channels] /= std
    new["quant_conv.bias"][:channels] = (new["quant_conv.bias"][:channels] - mean) / std
    if isinstance(first_stage, VQAutoencoder):
        new["quantizer.codebook"] = (new["quantizer.codebook"] - mean) / std
    else:  # of a variance divided by std^2
        new["quant_conv.bias"][channels:] -= 2 * std.log()
    return {key: value.to(before.weight.dtype) for key, value in new.items()}
