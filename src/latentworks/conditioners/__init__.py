"""Conditioners: fields of a batch to a condition. A closed family: label, text, frozen text."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.conditioners.frozen_text import FrozenTextConditioner, FrozenTextConfig, load_frozen_text
from latentworks.conditioners.label import LabelConditioner, LabelConfig
from latentworks.conditioners.text import TextConditioner, TextConfig, train_tokenizer

__all__ = [
    "Conditioner",
    "ConditionerConfig",
    "Encode",
    "FrozenTextConditioner",
    "FrozenTextConfig",
    "LabelConditioner",
    "LabelConfig",
    "TextConditioner",
    "TextConfig",
    "build_conditioner",
    "train_tokenizer",
]

ConditionerConfig = Annotated[LabelConfig | TextConfig | FrozenTextConfig, Field(discriminator="kind")]


def build_conditioner(config: LabelConfig | TextConfig | FrozenTextConfig, assets: Mapping[str, str] | None = None) -> Conditioner:
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
