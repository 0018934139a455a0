"""Whether images are copies of training images: how near they come to these, judged by how near real images come that cannot be copies."""

import heapq
from collections.abc import Generator, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from latentworks.data.sources import convert_depth
from latentworks.data.transforms import from_tensor
from latentworks.engine import keep_memory
from latentworks.first_stage import FirstStage
from latentworks.metrics.copying import Audit, Match, Rule, Times, Values, Verdict, allowed, calibrate, checked
from latentworks.metrics.features import FeatureNetwork, collect, extract
from latentworks.metrics.measurement import Progress
from latentworks.metrics.near import SPACES, Album, Kin, kin, reduced, thumbnails
from latentworks.metrics.reference import Reference, conditions
from latentworks.pipeline import Drawn, Pipeline
from latentworks.request import SampleRequest
from latentworks.types import Batch

__all__ = ["Audited", "Sample", "Suspect", "album", "audit", "drawn", "read"]

ENOUGH = 40  # held-out images from which they alone say how near a real image comes
MOST = 1000  # real images that are compared for that
SHOWN = 24  # of the most suspicious samples, pictures are kept

POWERLESS = 0.05  # so many times nearer than all real images a copy would have to be, as a share
CHUNK = 16  # images between two reports of progress

Sample = tuple[str, UInt8[np.ndarray, "h w c"]]
"""What an image is called, and its pixels."""


class Suspect(NamedTuple):
    """A sample in the size it was compared in, and its nearest training images by features and by pixels; in [0, 1]."""

    verdict: Verdict
    pictures: Float[Tensor, "3 c s s"]


class Audited(NamedTuple):
    """What an audit found, and the most suspicious samples, the worst first."""

    audit: Audit
    suspects: list[Suspect]


def album(reference: Reference, network: FeatureNetwork, what: str, through: FirstStage | None = None) -> Generator[Progress, None, Album]:
    """One pass over the images of a folder; of those equal in every pixel one is kept, and counted.

    ``through``: each is encoded and decoded before it is looked at. Pixels are kept in a file that is gone when the process ends.
    """
    names, keys, times = list[str](), dict[bytes, int](), list[int]()
    features, thumbs, shape = list[Float[np.ndarray, "b d"]](), list[Tensor](), tuple[int, ...]()
    done, source = 0, reference.source
    with TemporaryFile() as file:
        for part in reference.dataset.batches(CHUNK):  # always as many at once, as rounding may depend on it
            new = list[int]()
            for i, (index, image) in enumerate(zip(part["index"].tolist(), from_tensor(part["image"]), strict=True)):
                place = keys.setdefault(blake2b(image.tobytes(), digest_size=16).digest(), len(names))
                if place < len(names):
                    times[place] += 1
                    continue
                new.append(i)
                names.append(source.entries[index].name)
                times.append(1)
            if new:
                images = _passed(part["image"][new], through)
                features += extract(network, images, CHUNK)
                small = reduced(images)
                thumbs.append(thumbnails(small))
                shape = small.shape[1:]
                file.write((255 * small).round().byte().numpy().tobytes())
            done += len(part["index"])
            yield Progress(what, done, len(source))
        seen = torch.from_numpy(collect(features))  # refuses a folder without one image that can be read, which no file can be made of
        stored = np.memmap(file, np.uint8, "r", shape=(len(names), *shape))

    def pixels(places: list[int]) -> Float[Tensor, "k c s s"]:
        return torch.from_numpy(stored[places]).float() / 255

    return Album(names, list(keys), np.array(times), seen, torch.cat(thumbs), pixels)


def _passed(x: Float[Tensor, "b c h w"], through: FirstStage | None) -> UInt8[np.ndarray, "b h w c"]:
    """Images as they are, or as a first stage gives them back."""
    if through is None:
        return from_tensor(x)
    with torch.no_grad():
        return from_tensor(through(x.to(through.mean.device)).image.float().clamp(-1, 1).cpu())


def audit(
    samples: Iterable[Sample],
    n: int,
    training: Reference,
    network: FeatureNetwork,
    *,
    held_out: Reference | None = None,
    through: FirstStage | None = None,
    batch: int = 16,
) -> Iterator[Progress | Audited]:
    """Each of ``n`` samples beside the training images; ends with `Audited`.

    Real images set the rule: the held-out ones, or, where these are fewer than `ENOUGH`, training images beside the other ones.
    ``through``: the first stage of the model that drew the samples, which real images pass before they are compared: what it loses, a
    copy has lost too. Memory grows with the features of the folder's images, not with their pixels. Raises: ValueError for too few real
    images, or images that have no features.
    """
    if not training.has_features:
        raise ValueError(f"{training.name}: features are taken from 1 or 3 channels, these images have {training.channels}")
    if through is not None:
        through.eval()
        keep_memory(through.mean.device)
    known = yield from album(training, network, "training images", through)
    others = None if held_out is None else (yield from album(held_out, network, "held-out images", through))
    real = yield from _real(known, others)
    rule = calibrate(real.values, real.times)
    verdicts, worst = yield from _judged(samples, n, batch, network, known, others, rule)
    if not verdicts:
        raise ValueError("no images to audit: the folder or the sample is empty")
    if rule.limit * len(real.values) < POWERLESS:
        real.notes.append("some of these real images are as near to training images as copies are: only exact copies can be told from them")
    notes = real.notes + training.damaged + (held_out.damaged if held_out is not None else [])
    found = Audit(verdicts, rule, len(real.values), real.what, checked(real.values, real.times), _times(known, verdicts), notes)
    yield Audited(found, [_suspect(verdicts[-i - 1], x, near, known) for _, i, x, near in sorted(worst, reverse=True)])


_Worst = list[tuple[float, int, Float[Tensor, "c s s"], Kin]]
"""Score, minus the place after its own, reduced image and kin: a heap of the worst samples."""


def _judged(
    samples: Iterable[Sample], n: int, batch: int, network: FeatureNetwork, known: Album, others: Album | None, rule: Rule
) -> Generator[Progress, None, tuple[list[Verdict], _Worst]]:
    """The verdict on each sample, and the worst of them."""
    verdicts, worst = list[Verdict](), _Worst()
    pictures = iter(samples)
    while group := list(islice(pictures, batch)):
        features = torch.from_numpy(collect(extract(network, [image for _, image in group], batch)))
        for (name, image), row in zip(group, features, strict=True):
            x = reduced(image[None])[0]
            near = kin(row, x, known, others)
            verdicts.append(_verdict(name, near, known, rule))
            (heapq.heappush if len(worst) < SHOWN else heapq.heappushpop)(worst, (verdicts[-1].score, -len(verdicts), x, near))
        yield Progress("samples", len(verdicts), n)
    return verdicts, worst


class _Real(NamedTuple):
    """The values of real images, how often training has what they are nearest to, what they are, and what else there is to say of them."""

    values: Values
    times: Times
    what: str
    notes: list[str]


def _real(known: Album, others: Album | None) -> Generator[Progress, None, _Real]:
    """How near real images come to training images that they are not."""
    fresh, notes = ([] if others is None else _fresh(known, others)), list[str]()
    if others is not None and len(fresh) < len(others.names):
        leaked = len(others.names) - len(fresh)
        notes.append(f"{leaked} held-out images are training images too, pixel by pixel: they are left out of the comparison")
    if others is not None and len(fresh) >= ENOUGH:
        chosen, of, what = fresh, others, "held-out images"
    else:
        chosen, of, what = list(range(len(known.names))), known, "training images beside the other ones"
        allowed(len(chosen))  # too few are refused before they are compared
        notes.append(f"{len(fresh)} held-out images are too few to set the rule, for which {ENOUGH} are needed: training images set it")
    chosen = sorted(np.random.default_rng(0).permutation(chosen)[:MOST].tolist())
    rows = []
    for place in chosen:
        near = kin(of.features[place], of.pixels([place])[0], known, others, of=of)
        rows.append((near.ratios, near.times))
        if len(rows) % CHUNK == 0 or len(rows) == len(chosen):
            yield Progress("real images", len(rows), len(chosen))
    values, times = (np.stack(column) for column in zip(*rows, strict=True))
    return _Real(values, times, what, notes)


def _fresh(known: Album, others: Album) -> list[int]:
    """Places of the held-out images that are no training images."""
    seen = set(known.keys)
    return [place for place, key in enumerate(others.keys) if key not in seen]


def _verdict(name: str, near: Kin, known: Album, rule: Rule) -> Verdict:
    scores = rule.scores(near.ratios[None], near.times[None])[0]
    rows = zip(SPACES, near.places, near.first, near.ratios, scores, strict=True)
    matches = {space: Match(known.names[place], *map(float, numbers)) for space, place, *numbers in rows}
    closest = SPACES[int(scores.argmax())]
    return Verdict(name, matches[closest].score >= 1, matches[closest].score, closest, matches)


def _times(known: Album, verdicts: list[Verdict]) -> dict[str, int]:
    times = dict(zip(known.names, known.times.tolist(), strict=True))
    return {verdict.original: times[verdict.original] for verdict in verdicts}


def _suspect(verdict: Verdict, x: Float[Tensor, "c s s"], near: Kin, known: Album) -> Suspect:
    by_features, *by_pixels = near.places
    closest = near.places[SPACES.index(verdict.closest)] if verdict.closest != SPACES[0] else by_pixels[0]
    return Suspect(verdict, torch.cat([x[None], known.pixels([by_features, closest])]))


def drawn(pipeline: Pipeline, training: Reference, request: SampleRequest) -> Iterator[Sample]:
    """``request.n`` images for the training images' captions or classes; image i has seed ``request.seed + i``.

    Raises: ValueError, at once, for conditions that the training images do not have.
    """
    return _drawn(pipeline, conditions(pipeline.model, training, request.n, request.seed, request.batch), request)


def _drawn(pipeline: Pipeline, wanted: Iterator[Batch], request: SampleRequest) -> Iterator[Sample]:
    done = 0
    for batch in wanted:
        for event in pipeline.draw_batch(batch, request.replace(seed=request.seed + done)):
            if isinstance(event, Drawn):
                texts = batch.get("text") or [""] * event.done
                for image, one, text in zip(event.pixels, event.requests, texts, strict=True):
                    yield f"seed {one.seed}" + (f": {text}" if text else ""), convert_depth(image, np.dtype(np.uint8))
                done += event.done


def read(reference: Reference, batch: int) -> Iterator[Sample]:
    """The images of a folder, in order."""
    for part in reference.dataset.batches(batch):
        for index, image in zip(part["index"].tolist(), from_tensor(part["image"]), strict=True):
            yield reference.source.entries[index].name, image
