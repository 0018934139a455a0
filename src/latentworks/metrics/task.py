"""One evaluation from a model's name and a folder: what is to be measured, its circumstances as a card without figures, and its events."""

import hashlib
import os
import platform
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field, field_validator

from latentworks.checkpoints.native import load_folder, weights_hash
from latentworks.checkpoints.resolve import resolve_model
from latentworks.config import Config
from latentworks.data.listing import Split
from latentworks.data.transforms import Preprocess
from latentworks.metrics.card import (
    Card,
    DataFacts,
    DrawingFacts,
    ImageFacts,
    MachineFacts,
    ModelFacts,
    NetworkFacts,
    VersionFacts,
)
from latentworks.metrics.evaluate import evaluate_first_stage, evaluate_model
from latentworks.metrics.features import FeatureNetwork, filter_name
from latentworks.metrics.measurement import Evaluation, Progress
from latentworks.metrics.reference import ORDER, Fingerprint, Reference, fingerprint, reference_images
from latentworks.model import LatentDiffusion
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.pipeline import Pipeline
from latentworks.recipe import DiffusionRecipe, Recipe
from latentworks.request import SampleRequest

__all__ = ["Task", "Wanted", "prepare", "wanted_of"]


class Wanted(Config):
    """What to measure; None means "as fits the model". All but ``split`` and ``batch`` are of drawing, which a first stage does not."""

    split: Literal["train", "held_out", "all"] | None = None
    n: int = Field(1000, ge=1)
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int = Field(16, ge=1)
    bootstrap: int = Field(0, ge=0)

    @field_validator("bootstrap")
    @classmethod
    def _enough(cls, resamples: int) -> int:
        if resamples == 1:
            raise ValueError("one resample has no interval: give more, e.g. 100, or 0 for none")
        return resamples


def wanted_of(card: Card) -> Wanted:
    """What repeats a card."""
    wanted = Wanted(split=card.data.reference.split, batch=card.machine.batch, bootstrap=card.bootstrap)
    if card.drawing is None:
        return wanted
    drawing = card.drawing.model_dump(include={"n", "sampler", "steps", "eta", "guidance", "seed"})
    return wanted.replace(**{**drawing, "eta": drawing["eta"] if drawing["sampler"] == "ddim" else None})


class Task(NamedTuple):
    """An evaluation about to begin: ``card`` has no figures yet; ``events`` end with the `Evaluation`."""

    card: Card
    events: Iterator[Progress | Evaluation]


def prepare(model: str | Path, data: Path, wanted: Wanted, network: FeatureNetwork) -> Iterator[Progress | Task]:
    """Load the model, look at the folder, and say under which circumstances is measured; ends with a `Task`.

    Raises: ValueError naming what is wrong with the model, the folder or the settings, before anything is measured.
    """
    request = SampleRequest.parse(wanted.model_dump(exclude={"split", "bootstrap"}))
    folder = resolve_model(model)
    loaded, recipe = load_folder(folder)
    if isinstance(loaded, NoisyClassifier):
        raise ValueError(f"{model} is a classifier, which draws nothing: its held-out accuracy is in its card and its run's metrics.jsonl")
    what = _model(folder, recipe)
    if not isinstance(loaded, LatentDiffusion):
        reference = reference_images(data, recipe, _split(wanted.split or "held_out"))
        events = evaluate_first_stage(loaded, reference, network, batch=wanted.batch)
        card = yield from _card(what, recipe, reference, None, None, network, wanted, loaded.mean.device)
        yield Task(card, events)
        return
    assert isinstance(recipe, DiffusionRecipe)
    reference = reference_images(data, recipe, _split(wanted.split or "train"))
    floor = None
    if reference.source.split == "train" and reference.source.counts["held_out"] > 0:
        floor = reference_images(data, recipe, "held_out")
    pipeline = Pipeline(loaded, recipe.sampling, recipe.data.out_size, depth=recipe.data.depth)
    drawing = _drawing(pipeline, request)
    events = evaluate_model(pipeline, reference, network, request, held_out=floor, resamples=wanted.bootstrap)
    card = yield from _card(what, recipe, reference, floor, drawing, network, wanted, pipeline.device)
    yield Task(card, events)


def _split(name: str) -> Split | None:
    splits: dict[str, Split | None] = {"train": "train", "held_out": "held_out", "all": None}
    return splits[name]


def _model(folder: Path, recipe: Recipe) -> ModelFacts:
    assert recipe.kind != "classifier"
    settings = hashlib.sha256()
    for path in (folder / "recipe.json", *sorted(folder.glob("conditioners/*/*.json"))):
        settings.update(path.relative_to(folder).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return ModelFacts(name=recipe.name, kind=recipe.kind, weights=weights_hash(folder), settings=settings.hexdigest())


def _drawing(pipeline: Pipeline, request: SampleRequest) -> DrawingFacts:
    """Raises: ValueError for settings that the model cannot draw with."""
    full = pipeline.filled(request)
    assert full.sampler is not None
    assert full.steps is not None
    assert full.guidance is not None
    eta = {"ddim": full.eta or 0.0, "ddpm": 1.0}.get(full.sampler)
    fields = tuple(str(conditioner.field) for conditioner in pipeline.model.conditioners)
    return DrawingFacts(
        n=full.n, conditions=fields, order=ORDER if fields else "none", sampler=full.sampler, steps=full.steps, eta=eta,
        guidance=full.guidance, seed=full.seed,
    )  # fmt: skip


def _card(
    model: ModelFacts,
    recipe: Recipe,
    reference: Reference,
    floor: Reference | None,
    drawing: DrawingFacts | None,
    network: FeatureNetwork,
    wanted: Wanted,
    device: torch.device,
) -> Generator[Progress, None, Card]:
    """All circumstances; the images are read once for their hashes."""
    source, plain = reference.source, recipe.plain
    fields = drawing.conditions if drawing else ()
    seen = yield from fingerprint(reference, fields, wanted.batch)
    beside: Fingerprint | None = None
    if floor is not None:
        beside = yield from fingerprint(floor, fields, wanted.batch)
    folder, counts = source.path.resolve().name, source.counts
    return Card(
        model=model,
        images=ImageFacts(size=plain.size, crop=plain.out_size, resize=filter_name(_fitted), channels=source.channels),
        data=DataFacts(folder=folder, train=counts["train"], held_out=counts["held_out"], reference=seen, floor=beside),
        drawing=drawing,
        network=NetworkFacts(name=network.name, hash=network.hash, dim=network.dim, resize=network.resize),
        bootstrap=wanted.bootstrap if drawing else 0,
        machine=_machine(device, wanted.batch),
        versions=_versions(),
    )


def _fitted(image: Image.Image) -> UInt8[np.ndarray, "13 13"]:
    """A gray image, made small as images are prepared for every model."""
    return Preprocess(size=13).fit(np.asarray(image)[..., None])[..., 0]


def _machine(device: torch.device, batch: int) -> MachineFacts:
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    system = f"{platform.system()} {platform.machine()}"
    return MachineFacts(
        system=system, cpu=_processor(), cores=os.cpu_count(), threads=torch.get_num_threads(), device=name, batch=batch
    )  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _versions() -> VersionFacts:
    return VersionFacts(
        python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, pillow=PIL.__version__,
        latentworks=version("latentworks"),
    )  # fmt: skip
