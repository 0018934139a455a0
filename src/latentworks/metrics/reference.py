"""The images a model is measured against: a split of a folder under the training's own preprocessing, whole, in order, never mirrored."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentworks.completion import extras_of, needs_of
from latentworks.conditioners import LabelConditioner, LayoutConditioner
from latentworks.data.dataset import Extras, ImageDataset
from latentworks.data.listing import Split
from latentworks.data.sources import FolderSource
from latentworks.model import LatentDiffusion
from latentworks.recipe import DiffusionRecipe, Recipe
from latentworks.types import Batch, Box

__all__ = ["Reference", "conditions", "reference_images"]


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
    return Reference(name, source, ImageDataset(source, plain, captions="main", extras=extras))


def conditions(model: LatentDiffusion, reference: Reference, n: int, seed: int, batch: int) -> Iterator[Batch]:
    """``n`` conditions for a model, ``batch`` at once: those of images drawn without replacement, over again when they are used up.

    A prompt is an image's main caption. Raises: ValueError when the folder has no captions or classes for a model that needs them, or
    classes that the model does not have.
    """
    source, fields = reference.source, {str(conditioner.field) for conditioner in model.conditioners}
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
