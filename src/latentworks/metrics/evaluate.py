"""Measuring a whole model: a first stage by what it loses of images, a latent diffusion model by the images it draws."""

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from latentworks.data.sources import convert_depth
from latentworks.data.transforms import from_tensor
from latentworks.first_stage import FirstStage
from latentworks.metrics.distances import bootstrap, fit_gaussian, frechet_between, interval, kid, precision_recall
from latentworks.metrics.features import FeatureNetwork, Rows, extract
from latentworks.metrics.measurement import DISTANCE, Evaluation, Measurement, Progress
from latentworks.metrics.reconstruction import reconstruct
from latentworks.metrics.reference import Reference, conditions
from latentworks.pipeline import Drawn, Pipeline
from latentworks.request import SampleRequest
from latentworks.types import Batch

__all__ = ["evaluate_first_stage", "evaluate_model"]

Features = Float[np.ndarray, "n d"]
NEIGHBOURS = 3  # k of precision and recall
MOST = 10_000  # images a side for precision and recall, whose cost is quadratic
SUBSET = 1000  # images a subset of KID
FLOOR = 100  # real images below which their distance to the reference says little
FEW = f"{DISTANCE} of as many drawn images"
"""The first of them: the distance of few images is larger, so that of fewer real ones compares with no other."""


def evaluate_first_stage(
    first_stage: FirstStage, reference: Reference, network: FeatureNetwork, *, batch: int = 16
) -> Iterator[Progress | Evaluation]:
    """Reconstructions (mode of the posterior, clamped) against their images; ends with an `Evaluation`.

    PSNR and SSIM are means over the images; the Fréchet distance is taken between both sets in 8 bits, as a person would save them; a VQ
    stage also gives its codebook use. Images of other than 1 or 3 channels have no features: a note says so. Raises: ValueError.
    """
    reconstructed = yield from reconstruct(first_stage, reference, network, batch)
    yield reconstructed.evaluation


def evaluate_model(
    pipeline: Pipeline,
    reference: Reference,
    network: FeatureNetwork,
    request: SampleRequest,
    *,
    held_out: Reference | None = None,
    resamples: int = 0,
) -> Iterator[Progress | Evaluation]:
    """``request.n`` images drawn for the reference images' captions or classes, against those images; ends with an `Evaluation`.

    Beside Fréchet distance, KID, precision and recall stand the first stage's own figures on the same images and, given enough ``held_out``
    images, the distances of real ones to the reference: what a perfect model would reach with as many. ``resamples``: of a 95 %
    bootstrap interval of the Fréchet distance (0: none). Raises: ValueError, at once, for too few images, or conditions that the
    reference does not have.
    """
    wanted = conditions(pipeline.model, reference, request.n, request.seed, request.batch)
    if min(request.n, len(reference.source)) <= NEIGHBOURS:
        raise ValueError(f"n {request.n} and {len(reference.source)} reference images: give at least {NEIGHBOURS + 1} of both")
    return _evaluate_model(pipeline, reference, network, request, wanted, held_out, resamples)


def _evaluate_model(
    pipeline: Pipeline,
    reference: Reference,
    network: FeatureNetwork,
    request: SampleRequest,
    wanted: Iterator[Batch],
    held_out: Reference | None,
    resamples: int,
) -> Iterator[Progress | Evaluation]:
    drawn = Rows(request.n if reference.has_features else 0, network.dim)
    for pixels in _draw(pipeline, request, wanted) if reference.has_features else ():
        drawn.add(extract(network, pixels, request.batch))
        yield Progress("drawing", len(drawn), request.n)
    paired, originals = yield from reconstruct(pipeline.model.first_stage, reference, network, request.batch)
    if originals is None:
        yield paired
        return
    facts = _Facts(reference.name, network, request.seed, _settings(pipeline, request))
    images = drawn.features
    measurements, notes = (yield from _compare("", originals, images, facts, resamples)), []
    if held_out is not None and len(held_out.source) >= FLOOR:
        real = yield from _embed(held_out, network, request.batch)
        measurements += yield from _compare(" of real held-out images", originals, real, facts._replace(settings=held_out.name))
        notes += held_out.damaged
        if len(real) < len(images):
            distance = frechet_between(fit_gaussian(originals), fit_gaussian(images[: len(real)]))
            measurements.append(facts.measurement(FEW, distance, len(real), len(originals)))
    elif held_out is not None:
        notes.append(f"{len(held_out.source)} held-out images are too few to say how near real ones are: {FLOOR} are needed")
    yield Evaluation(measurements + paired.measurements, notes + paired.notes)


def _draw(pipeline: Pipeline, request: SampleRequest, wanted: Iterator[Batch]) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """Images for conditions, in 8 bits, batch by batch; image i has seed ``request.seed + i``."""
    done = 0
    for batch in wanted:
        for event in pipeline.draw_batch(batch, request.replace(seed=request.seed + done)):
            if isinstance(event, Drawn):
                yield convert_depth(event.pixels, np.dtype(np.uint8))
                done += event.done


def _settings(pipeline: Pipeline, request: SampleRequest) -> str:
    """How the images were drawn, the model's defaults filled in."""
    full = pipeline.filled(request)
    eta = "" if full.eta is None else f", eta {full.eta:g}"
    return f"{full.sampler}, {full.steps} steps, guidance {full.guidance:g}{eta}"


def _embed(reference: Reference, network: FeatureNetwork, batch: int) -> Generator[Progress, None, Features]:
    rows = Rows(len(reference.source), network.dim)
    for part in reference.dataset.batches(batch):
        rows.add(extract(network, from_tensor(part["image"]), batch))
        yield Progress("real held-out images", len(rows), len(reference.source))
    return rows.features


class _Facts(NamedTuple):
    """What is printed with each distance."""

    reference: str
    network: FeatureNetwork
    seed: int
    settings: str

    def measurement(
        self, name: str, value: float, n: int, against: int, how: str = "", between: tuple[float, float] | None = None
    ) -> Measurement:
        """A figure of ``n`` images against so many of the reference's."""
        network, reference = f"{self.network.name} {self.network.hash[:8]}", f"{self.reference}, {against} images"
        settings = f"{self.settings}, {how}" if how else self.settings
        return Measurement(name, value, n, reference, self.network.resize, self.seed, network, between, settings=settings)


def _compare(
    what: str, originals: Features, images: Features, facts: _Facts, resamples: int = 0
) -> Generator[Progress, None, list[Measurement]]:
    """Every distance between two sets of features, the name followed by ``what``."""

    def measurement(name: str, value: float, how: str = "", between: tuple[float, float] | None = None) -> Measurement:
        return facts.measurement(name + what, value, len(images), len(originals), how, between)

    real = fit_gaussian(originals)
    distance = frechet_between(real, fit_gaussian(images))
    yield Progress("distances" + what, 1, 3)
    resampled = []
    for value in bootstrap(
        lambda rows: frechet_between(real, fit_gaussian(images, rows)), len(images), seed=facts.seed, resamples=resamples
    ):
        resampled.append(value)
        yield Progress("bootstrap", len(resampled), resamples)
    size = min(SUBSET, len(originals), len(images))
    subsets = 1 if size == max(len(originals), len(images)) else 100  # if both sets are one subset, another would be the same
    kernel = kid(originals, images, seed=facts.seed, subsets=subsets, subset_size=size)
    yield Progress("distances" + what, 2, 3)
    near = precision_recall(_some(originals, facts.seed), _some(images, facts.seed), k=NEIGHBOURS)
    yield Progress("distances" + what, 3, 3)
    neighbours = f"k = {NEIGHBOURS}, at most {MOST:,} images a side"
    return [
        measurement(DISTANCE, distance, between=interval(distance, resampled) if resampled else None),
        measurement("KID", kernel.mean, f"subsets: {subsets} of {size}"),
        measurement("precision", near.precision, neighbours),
        measurement("recall", near.recall, neighbours),
    ]


def _some(features: Features, seed: int) -> Features:
    return features if len(features) <= MOST else features[np.random.default_rng(seed).choice(len(features), MOST, replace=False)]
