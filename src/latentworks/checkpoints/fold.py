"""Latent statistics folded into weights, for formats that have one scale for all channels, or none, where we have a mean for each."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["FOLDED", "fold", "unfold"]

FOLDED = ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias", "quantizer.codebook")
"""The weights of a first stage that change; a KL one has no codebook."""


@torch.no_grad()
def fold(weights: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """New values of the `FOLDED` of a first stage's ``weights`` that turn its latents z into (z - mean) / std; images stay what they are.

    ``mean`` (channels,) and ``std`` () are usually its own statistics, or its means and 1 where the format has a scale. Encoding, decoding
    and, for VQ, quantisation change together, so only rounding differs; a log-variance that was clamped is clamped elsewhere.
    """
    channels, mean, std = len(mean), mean.double().cpu(), std.double().cpu()
    new = {key: weights[key].detach().to("cpu", torch.float64, copy=True) for key in FOLDED if key in weights}
    new["post_quant_conv.bias"] += new["post_quant_conv.weight"][:, :, 0, 0] @ mean
    new["post_quant_conv.weight"] *= std
    new["quant_conv.weight"][:channels] /= std
    new["quant_conv.bias"][:channels] = (new["quant_conv.bias"][:channels] - mean) / std
    if "quantizer.codebook" in new:
        new["quantizer.codebook"] = (new["quantizer.codebook"] - mean) / std
    else:  # of a variance divided by std^2
        new["quant_conv.bias"][channels:] -= 2 * std.log()
    return {key: value.to(weights[key].dtype) for key, value in new.items()}


def unfold(folded: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights before `fold`, and ``mean`` and ``std``, as ``kept`` has them: rounding took away what would be needed to compute them.

    That both belong together is not believed: folded again, ``kept`` must give ``folded`` to the bit, else nothing comes back.
    """
    shapes: dict[str, tuple[int, ...]] = {key: tuple(folded[key].shape) for key in FOLDED if key in folded}
    shapes |= {"mean": (folded["post_quant_conv.weight"].shape[1],), "std": ()}
    if {key: tuple(value.shape) for key, value in kept.items()} != shapes or not all(v.is_floating_point() for v in kept.values()):
        return {}
    again = fold(kept, kept["mean"], kept["std"])
    same = all(torch.equal(value.to(folded[key].dtype), folded[key]) for key, value in again.items())
    return dict(kept) if same else {}
