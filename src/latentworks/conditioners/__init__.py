"""Conditioners: fields of a batch to a condition. A closed family: label, text, frozen text, layout, and three kinds of images."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.conditioners.features import FeaturesConditioner, FeaturesConfig
from latentworks.conditioners.frozen_text import FrozenTextConditioner, FrozenTextConfig, load_frozen_text
from latentworks.conditioners.image import (
    LowResConditioner,
    LowResConfig,
    MaskedImageConditioner,
    MaskedImageConfig,
    SegmentationConditioner,
    SegmentationConfig,
)
from latentworks.conditioners.label import LabelConditioner, LabelConfig
from latentworks.conditioners.layout import LayoutConditioner, LayoutConfig, layout_tokens
from latentworks.conditioners.text import TextConditioner, TextConfig, train_tokenizer

__all__ = [
    "Conditioner",
    "ConditionerConfig",
    "Encode",
    "FeaturesConditioner",
    "FeaturesConfig",
    "FrozenTextConditioner",
    "FrozenTextConfig",
    "LabelConditioner",
    "LabelConfig",
    "LayoutConditioner",
    "LayoutConfig",
    "LowResConditioner",
    "LowResConfig",
    "MaskedImageConditioner",
    "MaskedImageConfig",
    "SegmentationConditioner",
    "SegmentationConfig",
    "TextConditioner",
    "TextConfig",
    "build_conditioner",
    "layout_tokens",
    "train_tokenizer",
]

ConditionerConfig = Annotated[
    LabelConfig | TextConfig | FrozenTextConfig | LayoutConfig | SegmentationConfig | LowResConfig | MaskedImageConfig | FeaturesConfig,
    Field(discriminator="kind"),
]


def build_conditioner(config: ConditionerConfig, assets: Mapping[str, str] | None = None) -> Conditioner:
    """The conditioner of a config, with fresh weights. ``assets``: what `Conditioner.assets` gave when the model was saved.

    Raises: ValueError when a frozen encoder cannot be loaded.
    """
    match config:
        case LabelConfig():
            return LabelConditioner(config)
        case TextConfig():
            text = (assets or {}).get("tokenizer.json")
            return TextConditioner(config, Tokenizer.from_str(text) if text else None)
        case FrozenTextConfig():
            return load_frozen_text(config, assets)
        case LayoutConfig():
            return LayoutConditioner(config)
        case SegmentationConfig():
            return SegmentationConditioner(config)
        case LowResConfig():
            return LowResConditioner(config)
        case MaskedImageConfig():
            return MaskedImageConditioner(config)
        case FeaturesConfig():
            return FeaturesConditioner(config)
