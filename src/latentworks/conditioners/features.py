"""A context computed elsewhere: embeddings of texts or retrieved images, taken as they are given (retrieval-augmented models)."""

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.config import Config
from latentworks.types import Batch, Cond, Gives

__all__ = ["FeaturesConditioner", "FeaturesConfig"]


class FeaturesConfig(Config):
    """``width`` of each vector; their number is free."""

    kind: Literal["features"] = "features"
    width: int = Field(ge=1)
    dropout: float = Field(default=0.0, ge=0, le=1)


class FeaturesConditioner(Conditioner):
    """Reads ``batch["text_features"]``, ``b l width``, and has no weights. "No condition" is all zeros, as the authors have it."""

    field = "text_features"

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(context=config.width)

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """Context ``b l width``. Raises: ValueError when it is not given, or of another width."""
        if "text_features" not in batch:
            raise ValueError(f'text_features: this model takes embeddings; give batch["text_features"] of shape b l {self.config.width}')
        features: Tensor = batch["text_features"]
        if features.shape[-1] != self.config.width:
            raise ValueError(f"text_features: they are {features.shape[-1]} wide, but this model takes {self.config.width}")
        return Cond(context=features)

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """Zeros where true."""
        features = batch["text_features"]
        dropped = where.to(features.device)[:, None, None]
        return {**batch, "text_features": torch.where(dropped, torch.zeros_like(features), features)}
