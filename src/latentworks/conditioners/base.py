"""What a conditioner is: it turns fields of a batch into a condition, and can drop them for classifier-free guidance."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentworks.types import Batch, Cond, Gives

__all__ = ["Conditioner", "Encode"]


@runtime_checkable  # so that tests can check it at every call
class Encode(Protocol):
    """Image in [-1, 1] -> latent (mode of the posterior), for conditions that are images.

    ``normalised=False``: as the first stage's encoder gives it, not scaled.
    """

    def __call__(self, image: Float[Tensor, "b c H W"], normalised: bool = True) -> Float[Tensor, "b z h w"]:
        """The latent."""


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
