"""The images a model is measured against: a split of a folder under the training's own preprocessing, whole, in order, never mirrored."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latentworks.conditioners import FrozenTextConfig, LabelConditioner, TextConfig
from latentworks.data.dataset import ImageDataset
from latentworks.data.listing import Split
from latentworks.data.sources import FolderSource
from latentworks.model import LatentDiffusion
from latentworks.recipe import DiffusionRecipe, Recipe

__all__ = ["Condition", "Reference", "conditions", "reference_images"]


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
    plain, captioned = recipe.plain, False
    if isinstance(recipe, DiffusionRecipe):
        captioned = any(isinstance(config, TextConfig | FrozenTextConfig) for config in recipe.conditioners)
    source = FolderSource(folder, split=split, channels=plain.channels, captioned_only=captioned)
    name = f"{folder.resolve().name} {split or 'all'}{' captioned' if captioned else ''} at {plain.out_size} px"
    return Reference(name, source, ImageDataset(source, plain))


class Condition(NamedTuple):
    """What one image is drawn for."""

    prompt: str | None = None
    label: int | None = None


def conditions(model: LatentDiffusion, source: FolderSource, n: int, seed: int) -> list[Condition]:
    """``n`` conditions for a model, sorted by class: those of images drawn without replacement, over again when they are used up.

    A prompt is an image's main caption. Raises: ValueError when the folder has no captions or classes for a model that needs them.
    """
    fields = {str(conditioner.field) for conditioner in model.conditioners}
    entries = [entry for entry in source.entries if entry.text] if "text" in fields else source.entries
    if not entries:
        raise ValueError("--data: this model draws from prompts, but no image there has a caption: give a folder with captions")
    if "label" in fields and not source.classes:
        raise ValueError("--data: this model draws classes, but the folder has none: give one whose sub-folders are its classes")
    order = np.random.default_rng(seed).permutation(len(entries))
    picked = [entries[order[i % len(order)]] for i in range(n)]
    prompts = [entry.text[0] if "text" in fields else None for entry in picked]
    label = next((conditioner for conditioner in model.conditioners if isinstance(conditioner, LabelConditioner)), None)
    if label is None:
        return [Condition(prompt) for prompt in prompts]
    known = [label.index(name if label.config.names else i) for i, name in enumerate(source.classes)]
    labels = [None if entry.label is None else known[entry.label] for entry in picked]
    return sorted(map(Condition, prompts, labels), key=lambda condition: (condition.label is None, condition.label))
