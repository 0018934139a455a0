"""A class as condition: one learned vector per class, and one more for "no class"."""

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.config import Config, nearest
from latentworks.types import Batch, Cond, Gives

__all__ = ["LabelConditioner", "LabelConfig", "class_index"]


class LabelConfig(Config):
    """``route``: one token of context (the paper), or a vector added to the time embedding, then as wide as that.

    ``null``: whether a last row of the table stands for "no class"; released models without one cannot be guided.
    """

    kind: Literal["label"] = "label"
    classes: int = Field(ge=1)
    width: int = Field(default=512, ge=1)
    route: Literal["context", "vector"] = "context"
    null: bool = True
    dropout: float = Field(default=0.0, ge=0, le=1)
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "LabelConfig":
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names: {len(self.names)} names for {self.classes} classes: give one each, or none")
        if self.dropout and not self.null:
            raise ValueError(f"dropout: {self.dropout} needs a null class: set null to true")
        return self


class LabelConditioner(Conditioner):
    """Reads ``batch["label"]``, integers 0..classes - 1; ``classes`` itself is the null class."""

    field = "label"

    def __init__(self, config: LabelConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(context=config.width) if config.route == "context" else Gives(vector=config.width)
        self.embedding = nn.Embedding(config.classes + config.null, config.width)

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """A token ``b 1 width`` of context, or a vector ``b width``. Raises: ValueError without a label, or for an unknown one."""
        if "label" not in batch:
            raise ValueError('label: this model is conditioned on classes; give batch["label"], integers of shape b')
        label = batch["label"].to(self.embedding.weight.device)
        if label.numel() and not (int(label.min()) >= 0 and int(label.max()) < self.embedding.num_embeddings):
            bad = label[(label < 0) | (label >= self.embedding.num_embeddings)][0]
            raise ValueError(f"label: {int(bad)} is not a class of this model: use 0 to {self.config.classes - 1}")
        vectors: Tensor = self.embedding(label)
        return Cond(context=vectors[:, None]) if self.config.route == "context" else Cond(vector=vectors)

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """The null class where true. Raises: ValueError when the model has none."""
        if "label" not in batch or not bool(where.any()):
            return batch
        if not self.config.null:
            raise ValueError("label: this model has no null class, so it cannot be sampled without a label or guided: use guidance 1")
        where = where.to(batch["label"].device)
        return {**batch, "label": torch.where(where, self.config.classes, batch["label"])}

    def index(self, label: int | str) -> int:
        """A class by its number or its name. Raises: ValueError naming the nearest one."""
        return class_index("label", label, self.config.classes, self.config.names)


def class_index(field: str, label: int | str, classes: int, names: tuple[str, ...]) -> int:
    """One of so many classes by its number or its name. Raises: ValueError naming ``field`` and the nearest class."""
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, str) and not label.isdecimal():
        way_out = nearest(label, list(names)) if names else f"this model's classes have no names: use 0 to {classes - 1}"
        raise ValueError(f"{field}: {label!r} is not a class of this model: {way_out}")
    if not 0 <= int(label) < classes:
        raise ValueError(f"{field}: {label} is not a class of this model: use 0 to {classes - 1}")
    return int(label)
