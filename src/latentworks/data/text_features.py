"""What a frozen text encoder makes of a data set's captions, computed once for each different caption."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentworks.data.progress import Progress
from latentworks.data.rows import Rows, open_rows, write_rows
from latentworks.staging import staged

__all__ = ["TextFeatures"]

_CHUNK = 64


class TextFeatures:
    """Stored features by caption; "" (no condition) is always among them.

    ``encode``: texts -> ``b l d``, a function of each text alone. ``key`` names the encoder with its weights and length: another key is
    another store. The store is a folder of its own in ``folder``.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], key: str, captions: Iterable[str], folder: Path) -> None:
        self.encode = encode
        self.captions = sorted({"", *captions})
        digest = hashlib.blake2b(json.dumps([key, self.captions]).encode(), digest_size=8).hexdigest()
        self.folder = folder / f"text-{digest}"
        self._places = {caption: place for place, caption in enumerate(self.captions)}
        self._features = self._open()

    @property
    def ready(self) -> bool:
        """Whether every caption's features are stored."""
        return self._features is not None

    def fill(self) -> Iterator[Progress]:
        """Encode what is not stored yet. Raises: ValueError naming the folder when it cannot be written; nothing is left there then."""
        self._features = self._features if self._features is not None else self._open()  # another process may have filled it
        if self.ready:
            return
        with staged(self.folder, replace=True) as path:
            for done in write_rows(path / "features.npy", len(self.captions), self._chunks()):
                yield Progress(done, len(self.captions))
        self._features = self._open()

    def __call__(self, texts: list[str]) -> Float[Tensor, "b l d"]:
        """Features, float32. Raises: ValueError for a caption that is not stored, or when nothing is."""
        if self._features is None:
            raise ValueError(f"no text features are stored in {self.folder}: fill them first")
        for text in texts:
            if text not in self._places:
                raise ValueError(f"{text!r} is not among the {len(self.captions)} stored captions: give the data set's own")
        return torch.from_numpy(np.asarray(self._features[[self._places[text] for text in texts]]))

    @torch.no_grad()
    def _encoded(self, texts: list[str]) -> Rows:
        return self.encode(texts).float().cpu().numpy()

    def _chunks(self) -> Iterator[Rows]:
        return (self._encoded(self.captions[start : start + _CHUNK]) for start in range(0, len(self.captions), _CHUNK))

    def _open(self) -> Rows | None:
        return open_rows(self.folder / "features.npy", len(self.captions))
