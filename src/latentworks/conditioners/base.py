"""What a conditioner is: it turns fields of a batch into a condition, and can drop them for classifier-free guidance."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentworks.types import Batch, Cond, Gives

__all__ = ["Conditioner", "Encode"]

Encode = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b z h w"]]
"""Image in [-1, 1] -> normalised latent (mode of the posterior), for conditions that are images."""


class Conditioner(nn.Module, ABC):
    """Abstract. `drop` serves training dropout and the unconditional half of guidance alike, at value level."""

    gives: Gives
    dropout: float  # probability of dropping a sample's condition in training
    field: str  # the Batch field it reads

    @abstractmethod
    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """The condition of a batch. Raises: ValueError when its field is missing."""

    @abstractmethod
    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """A copy of the batch with the condition replaced by "none" (null class, "", no boxes, zero map) where true."""

    def assets(self) -> dict[str, Any]:
        """Files beside the weights that the conditioner needs, by file name (a tokenizer's JSON text, class names). Default: none."""
        return {}
