"""Measuring a first stage by what it loses: reconstructions against their images."""

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentworks.data.transforms import from_tensor
from latentworks.engine import keep_memory
from latentworks.first_stage import FirstStage, VQAutoencoder
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.features import FeatureNetwork, Rows, extract
from latentworks.metrics.measurement import DISTANCE, Evaluation, Measurement, Progress
from latentworks.metrics.paired import codebook_use, psnr, psnr_non_white, ssim
from latentworks.metrics.reference import Reference

__all__ = ["Reconstructed", "reconstruct"]

WINDOW = 11  # pixels a side that SSIM needs


class Reconstructed(NamedTuple):
    """The figures, and the features of the images themselves: None if they have too many channels for a network."""

    evaluation: Evaluation
    originals: Float[np.ndarray, "n d"] | None


def reconstruct(
    first_stage: FirstStage, reference: Reference, network: FeatureNetwork, batch: int
) -> Generator[Progress, None, Reconstructed]:
    """One pass over the images, never all in memory. A reconstruction is that of the posterior's mode, clamped to [-1, 1]."""
    first_stage.eval()
    keep_memory(first_stage.mean.device)
    losses: dict[str, list[float]] = {}
    originals, made_again = (Rows(len(reference.source) if reference.has_features else 0, network.dim) for _ in range(2))
    codes = torch.zeros(first_stage.config.codes if isinstance(first_stage, VQAutoencoder) else 0, dtype=torch.long)
    done = 0
    for part in reference.dataset.batches(batch):
        x = part["image"]
        with torch.no_grad():
            made = first_stage(x.to(first_stage.mean.device))
        y = made.image.float().clamp(-1, 1).cpu()
        for name, values in _losses(y, x).items():
            losses.setdefault(name, []).extend(values.tolist())  # a small tensor kept of each batch would pin the memory around it
        if made.codes is not None:
            codes += torch.bincount(made.codes.flatten().cpu(), minlength=len(codes))
        if reference.has_features:
            for rows, images in ((originals, x), (made_again, y)):
                rows.add(extract(network, from_tensor(images), batch))  # in 8 bits, as they would be saved
        done += len(x)
        yield Progress("reconstructing", done, len(reference.source))
    if not losses:
        raise ValueError(f"{reference.name}: not one image can be read; `lw data check` says why")
    measurements, notes = [*_paired(losses, reference, done)], []
    if not reference.has_features:
        notes.append(f"features are taken from 1 or 3 channels, these images have {reference.channels}: only paired measures are given")
    elif done > 1:
        distance, against = frechet_distance(originals.features, made_again.features), f"the same images: {reference.name}, {done} images"
        name, label = f"{DISTANCE} of reconstructions", f"{network.name} {network.hash[:8]}"
        measurements.append(Measurement(name, distance, done, against, network.resize, network=label))
    if len(codes):
        measurements += _codebook(codes, reference, done)
    notes += reference.damaged
    return Reconstructed(Evaluation(measurements, notes), originals.features if reference.has_features else None)


def _losses(y: Tensor, x: Tensor) -> dict[str, Float[Tensor, " b"]]:
    losses = {"PSNR": psnr(y, x), "PSNR over non-white pixels": psnr_non_white(y, x)}
    return {**losses, "SSIM": ssim(y, x)} if min(x.shape[2:]) >= WINDOW else losses


def _paired(losses: dict[str, list[float]], reference: Reference, n: int) -> list[Measurement]:
    """Means over the images that have a value: an all-white one has no non-white pixels."""
    measurements = []
    for name, of_all in losses.items():
        values = np.array([value for value in of_all if not np.isnan(value)])
        if len(values):
            against, unit = f"the same images: {reference.name}, {n} images", "" if name == "SSIM" else "dB"
            measurements.append(Measurement(f"{name} of reconstructions", float(values.mean()), len(values), against, "none", unit=unit))
    return measurements


def _codebook(codes: Tensor, reference: Reference, n: int) -> list[Measurement]:
    use = codebook_use(codes)
    figures = {"codebook use": use.fraction, "codebook perplexity": use.perplexity}
    return [Measurement(name, value, n, f"{reference.name}, {len(codes)} codes", "none") for name, value in figures.items()]
