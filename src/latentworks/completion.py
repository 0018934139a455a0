"""What a recipe leaves open of its conditions, taken from the folder: classes, vocabularies, palettes; and what its batches must carry."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from latentworks.checkpoints.resolve import resolve_model
from latentworks.conditioners import (
    Conditioner,
    ConditionerConfig,
    FrozenTextConfig,
    LabelConfig,
    LayoutConfig,
    LowResConfig,
    MaskedImageConfig,
    SegmentationConfig,
    TextConfig,
    build_conditioner,
    train_tokenizer,
)
from latentworks.config import Config
from latentworks.data.dataset import Extras
from latentworks.data.palette import palette_of
from latentworks.data.sources import FolderSource, Need
from latentworks.first_stage import FirstStage
from latentworks.recipe import DiffusionRecipe, Recipe

__all__ = ["complete", "extras_of", "needs_of"]


def needs_of(recipe: Recipe) -> tuple[Need, ...]:
    """What a folder must say of an image for it to be of use to this recipe."""
    configs = recipe.conditioners if isinstance(recipe, DiffusionRecipe) else ()
    needs: dict[type[Config], Need] = {
        TextConfig: "text", FrozenTextConfig: "text", LayoutConfig: "boxes", SegmentationConfig: "segmentation",
    }  # fmt: skip
    return tuple(dict.fromkeys(needs[type(config)] for config in configs if type(config) in needs))


def extras_of(configs: Iterable[ConditionerConfig | Config]) -> Extras:
    """What batches must carry for conditioners of these configs, beside images, captions and classes."""
    given = {type(config): config for config in configs}
    layout, low_res, text = given.get(LayoutConfig), given.get(LowResConfig), given.get(TextConfig)
    return Extras(
        boxes=layout.objects if isinstance(layout, LayoutConfig) else 0,
        segmentation=SegmentationConfig in given,
        low_res=(low_res.degradation, low_res.factor) if isinstance(low_res, LowResConfig) else None,
        holes=MaskedImageConfig in given,
        word_dropout=text.word_dropout if isinstance(text, TextConfig) else 0.0,
        word_shuffle=text.word_shuffle if isinstance(text, TextConfig) else 0.0,
    )


def complete(
    config: ConditionerConfig, index: int, source: FolderSource, first_stage: FirstStage, from_model: Path | str | None = None
) -> Conditioner:
    """The conditioner ``index`` of a recipe with the folder's classes, vocabulary or palette, and in the sizes of the first stage.

    A fine-tuned model keeps its own vocabulary. Raises: ValueError naming what the folder lacks, or the setting that does not fit.
    """
    match config:
        case LabelConfig():
            if not source.classes:
                raise ValueError(f"{source.path} has no classes: give one sub-folder for each class, or a label in metadata.jsonl")
            return build_conditioner(config.replace(classes=len(source.classes), names=source.classes))
        case LayoutConfig():
            return build_conditioner(config.replace(classes=len(source.categories), names=source.categories))
        case SegmentationConfig():
            return build_conditioner(_segmentation(config, source, first_stage.factor))
        case LowResConfig():
            return build_conditioner(_low_res(config, source, first_stage.factor))
        case MaskedImageConfig():
            return build_conditioner(config.replace(channels=first_stage.channels))
        case TextConfig():
            config = config.replace(channels=first_stage.channels)
            asset = None if from_model is None else resolve_model(from_model) / "conditioners" / str(index) / "tokenizer.json"
            if asset is not None and asset.is_file():
                return build_conditioner(config, {"tokenizer.json": asset.read_text(encoding="utf-8")})
            captions = (text for entry in source.entries for text in entry.text)
            return build_conditioner(config, {"tokenizer.json": train_tokenizer(captions, config.vocabulary).to_str()})
        case FrozenTextConfig():
            return build_conditioner(config)
    raise ValueError(f"conditioners.{index}.kind: {config.kind} cannot be trained from a folder, which has no embeddings: use another kind")


def _segmentation(config: SegmentationConfig, source: FolderSource, factor: int) -> SegmentationConfig:
    """With as many classes as its label maps have (at least as many as are set), named where they are the boxes' categories after a
    background, and in the colours of the first map."""
    values = {int(value) for i in range(len(source)) for value in np.unique(source.labels(i))}
    classes = max(config.classes, max(values) + 1)
    names = ("background", *source.categories) if source.categories and len(source.categories) + 1 >= classes else ()
    classes = max(classes, len(names))
    first = source.entries[0].segmentation
    assert first is not None
    palette = palette_of(source.path / first, classes)
    return config.replace(classes=classes, names=names, palette=palette, stages=_halvings(factor))


def _low_res(config: LowResConfig, source: FolderSource, factor: int) -> LowResConfig:
    """In the images' channels, and brought to the latent's size. Raises: ValueError where no whole number does so."""
    if config.factor % factor and factor % config.factor:
        raise ValueError(f"conditioners.factor: a small image {config.factor} times smaller does not fit latents of f = {factor}: "
                         f"use a first stage whose f divides {config.factor} or is a multiple of it")  # fmt: skip
    return config.replace(channels=source.channels, scale=max(1, config.factor // factor), fold=max(1, factor // config.factor))


def _halvings(factor: int) -> int:
    return factor.bit_length() - 1
