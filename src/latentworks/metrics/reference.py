"""The images a model is measured against: a split of a folder under the training's own preprocessing, whole, in order, never mirrored."""

import hashlib
import json
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from latentworks.completion import extras_of, needs_of
from latentworks.conditioners import LabelConditioner, LayoutConditioner
from latentworks.config import Config
from latentworks.data.dataset import Extras, ImageDataset
from latentworks.data.listing import Split
from latentworks.data.sources import FolderSource
from latentworks.metrics.measurement import Progress
from latentworks.model import LatentDiffusion
from latentworks.recipe import DiffusionRecipe, Recipe
from latentworks.types import Batch, Box

__all__ = ["ORDER", "Fingerprint", "Reference", "conditions", "fingerprint", "reference_images"]

ORDER = "those of the images compared with, shuffled by the seed; over again once all were used"
"""How `conditions` chooses captions, classes and the like: each is drawn as often as it occurs."""


@dataclass(frozen=True)
class Reference:
    """``name`` is what is printed of it: folder, split and preprocessing, without a path."""

    name: str
    source: FolderSource
    dataset: ImageDataset

    @property
    def channels(self) -> int:
        """Channels of the images, as the model sees them."""
        return self.source.channels

    @property
    def damaged(self) -> list[str]:
        """A note on the images that could not be read so far, if there are any."""
        skipped = self.dataset.skipped
        return [f"damaged images were left out: {len(skipped)} ({', '.join(skipped[:5])})"] if skipped else []

    @property
    def has_features(self) -> bool:
        """Whether a feature network can see them."""
        return self.channels in (1, 3)


def reference_images(folder: Path, recipe: Recipe, split: Split | None) -> Reference:
    """A part of a folder (None: all of it) as a model of this recipe is measured on it.

    A first stage is measured on whole images even if it was trained on crops; a latent model on what it was trained to draw, and one
    that reads prompts on captioned images, as it saw no others. Raises: ValueError naming what is wrong with the folder.
    """
    plain, needs = recipe.plain, needs_of(recipe)
    source = FolderSource(folder, split=split, channels=plain.channels, needs=needs)
    said = {"text": "captioned", "boxes": "with boxes", "segmentation": "with label maps"}
    name = " ".join([folder.resolve().name, split or "all", *(said[need] for need in needs), f"at {plain.out_size} px"])
    extras = extras_of(recipe.conditioners) if isinstance(recipe, DiffusionRecipe) else Extras()
    # no image is kept: memory is for features, which are smaller
    return Reference(name, source, ImageDataset(source, plain, captions="main", budget=0, extras=extras))


class Fingerprint(Config):
    """What images were measured on, as sha256 hashes that are equal on every machine: of files, prepared pixels, and conditions."""

    split: Literal["train", "held_out", "all"] = Field(title="part of the folder")
    images: int = Field(ge=1, title="images that can be read")
    files: str = Field(title="hash of the files")
    pixels: str = Field(title="hash of the prepared images")
    conditions: str = Field(title="hash of their captions, classes and the like")


def fingerprint(reference: Reference, fields: Collection[str] = (), batch: int = 16) -> Generator[Progress, None, Fingerprint]:
    """One pass over the images; ``fields``: what a model reads beside them. Raises: ValueError where not one image can be read."""
    source, (files, pixels, known) = reference.source, (hashlib.sha256() for _ in range(3))
    done = 0
    for entry in source.entries:
        files.update(entry.name.encode("utf-8", "surrogateescape") + b"\0" + _content(source.path / entry.name))
    known.update(repr((source.classes, source.categories) if fields else ()).encode("utf-8", "surrogateescape"))
    for part in reference.dataset.batches(batch):
        pixels.update(part["image"].numpy().tobytes())
        beside = {str(key): value for key, value in part.items() if key in fields}
        for i in range(len(part["index"])):
            for key in sorted(beside):
                value = beside[key][i]  # type: ignore[index]
                known.update(value.numpy().tobytes() if isinstance(value, Tensor) else json.dumps(value, sort_keys=True).encode())
        done += len(part["index"])
        yield Progress("hashing images", done, len(source))
    if not done:
        raise ValueError(f"{reference.name}: not one image can be read; `lw data check` says why")
    hashes = {"files": files.hexdigest(), "pixels": pixels.hexdigest(), "conditions": known.hexdigest()}
    return Fingerprint(split=source.split or "all", images=done, **hashes)


def _content(path: Path) -> bytes:
    """sha256 of a file; nothing of one that cannot be opened."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


def conditions(model: LatentDiffusion, reference: Reference, n: int, seed: int, batch: int) -> Iterator[Batch]:
    """``n`` conditions for a model, ``batch`` at once: those of images drawn without replacement, over again when they are used up.

    A prompt is an image's main caption. Raises: ValueError when the folder has no captions or classes for a model that needs them, or
    classes that the model does not have.
    """
    source, fields = reference.source, {str(conditioner.field) for conditioner in model.conditioners}
    if seed < 0:
        raise ValueError(f"--seed {seed}: it also shuffles the folder's conditions: give 0 or more")
    if "text" in fields and not any(entry.text for entry in source.entries):
        raise ValueError("--data: this model draws from prompts, but no image there has a caption: give a folder with captions")
    if "label" in fields and not source.classes:
        raise ValueError("--data: this model draws classes, but the folder has none: give one whose sub-folders are its classes")
    order = np.random.default_rng(seed).permutation(len(source))
    picked = [int(order[i % len(order)]) for i in range(n)]
    parts = (picked[start : start + batch] for start in range(0, n, batch))
    return (_in_its_numbers(model, source, reference.dataset.batch(part)) for part in parts)


def _in_its_numbers(model: LatentDiffusion, source: FolderSource, batch: Batch) -> Batch:
    """A folder's classes and categories by the model's numbers for them. Raises: ValueError naming the first that it does not have."""
    for conditioner in model.conditioners:
        if isinstance(conditioner, LabelConditioner) and conditioner.config.names:
            known = torch.tensor([conditioner.index(name) for name in source.classes])
            batch = {**batch, "label": known[batch["label"]]}
        if isinstance(conditioner, LayoutConditioner) and conditioner.config.names:
            boxes: list[list[Box]] = [[{**box, "label": source.categories[int(box["label"])]} for box in of] for of in batch["boxes"]]
            batch = {**batch, "boxes": boxes}
    return batch
