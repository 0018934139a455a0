"""The latent cache: the first stage's raw output for every image, encoded once; and the statistics of latents."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentworks.data.dataset import ImageDataset
from latentworks.data.progress import Progress
from latentworks.data.rows import Rows, open_rows, write_rows
from latentworks.data.text_features import TextFeatures
from latentworks.data.transforms import PLAIN, Variant
from latentworks.engine import keep_memory
from latentworks.first_stage.base import FirstStage
from latentworks.random import generator
from latentworks.staging import staged
from latentworks.types import Batch

__all__ = ["LatentDataset", "latent_statistics", "weights_digest"]

_CHUNK = 16  # images encoded at once


class LatentDataset:
    """Batches with ``raw`` (see `FirstStage.encode_raw`) in place of ``image``, read from the disk.

    Raw means before sampling and normalising: posterior noise is drawn anew at every step, and statistics may change. Of each image
    ``variants`` crops and flips are stored (as many as the settings allow: 1 without either, 2 with flips alone); the first is the plain
    one, a step draws one of them. Row i of a damaged file holds the image that stands in for it.

    The store is a sub-folder of ``folder`` named after a hash of first-stage weights, preprocessing and files, so that one made for
    anything else is never used. ``text_features`` adds the field of that name. Raises: ValueError for a size that f does not divide.
    """

    def __init__(
        self,
        first_stage: FirstStage,
        dataset: ImageDataset,
        folder: Path,
        variants: int = 1,
        dtype: Literal["float32", "float16"] = "float32",
        text_features: TextFeatures | None = None,
    ) -> None:
        if variants < 1:
            raise ValueError(f"variants must be at least 1 (got {variants}); 1 stores the plain image only")
        preprocess = dataset.preprocess
        first_stage.check_size(preprocess.out_size, preprocess.out_size)
        self.first_stage, self.dataset, self.dtype, self.text_features = first_stage, dataset, np.dtype(dtype), text_features
        self.variants = variants if preprocess.crop == "random" else min(variants, 1 + preprocess.flip)
        self.folder = folder / f"latents-{self._key()}"
        self._raw = self._open()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def ready(self) -> bool:
        """Whether everything is stored."""
        return self._raw is not None and (self.text_features is None or self.text_features.ready)

    @property
    def skipped(self) -> list[str]:
        """Names of the damaged files, whether met now or when the store was filled."""
        return self.dataset.skipped

    def variant(self, index: int, k: int) -> Variant:
        """The k-th stored variant of an image."""
        preprocess = self.dataset.preprocess
        if k == 0:
            return PLAIN
        if preprocess.crop == "center":
            return PLAIN._replace(flip=True)
        return preprocess.draw(generator(self.dataset.seed, "stored variant", index, k))

    def drawn(self, index: int, step: int | None) -> int:
        """Which stored variant of an image a step sees; the plain one without a step."""
        if step is None or self.variants == 1:
            return 0
        return int(torch.randint(self.variants, (), generator=generator(self.dataset.seed, "choice of variant", step, index)))

    def indices_for(self, step: int, batch: int) -> list[int]:
        """As `ImageDataset.indices_for`."""
        return self.dataset.indices_for(step, batch)

    def batch(self, indices: Sequence[int], step: int | None = None) -> Batch:
        """``raw`` float32 and what `ImageDataset.fields` gives. Raises: ValueError when the cache is not filled."""
        if self._raw is None:
            raise ValueError(f"the latent cache is empty: fill {self.folder} first (lw encode)")
        drawn = [self.drawn(i, step) for i in indices]
        variants = [self.variant(i, k) for i, k in zip(indices, drawn, strict=True)]
        rows = self._raw[[i * self.variants + k for i, k in zip(indices, drawn, strict=True)]]
        batch: Batch = {"raw": torch.from_numpy(np.asarray(rows, np.float32)), **self.dataset.fields(indices, step, variants)}
        if self.dataset.extras.holes:  # what is around a hole is the condition, encoded anew
            batch["image"] = self.dataset.images(indices, variants)
        if self.text_features is not None and "text" in batch:
            batch["text_features"] = self.text_features(batch["text"])
        return batch

    def batches(self, size: int) -> Iterator[Batch]:
        """Every readable image once, in order and plain. Raises: as `batch`."""
        readable = [i for i in range(len(self)) if i not in self.dataset.damaged]
        for start in range(0, len(readable), size):
            yield self.batch(readable[start : start + size])

    def fill(self) -> Iterator[Progress]:
        """Encode what is not stored yet; stopping half-way leaves nothing behind.

        Raises: ValueError naming the folder when it cannot be written, or when not one image can be read.
        """
        if self.text_features is not None:
            yield from self.text_features.fill()
        self._raw = self._raw if self._raw is not None else self._open()  # another process may have filled it
        if self._raw is not None:
            return
        keep_memory(self.first_stage.mean.device)
        total = len(self) * self.variants
        with staged(self.folder, replace=True) as path:
            for done in write_rows(path / "raw.npy", total, self._chunks()):
                yield Progress(done, total)
            (path / "damaged.json").write_text(json.dumps(sorted(self.dataset.damaged)))
        self._raw = self._open()

    def _chunks(self) -> Iterator[Rows]:
        for start in range(0, len(self), _CHUNK):
            pairs = [(i, k) for i in range(start, min(start + _CHUNK, len(self))) for k in range(self.variants)]
            images = self.dataset.images([i for i, _ in pairs], [self.variant(i, k) for i, k in pairs])
            yield np.asarray(_encode_raw(self.first_stage, images).cpu(), self.dtype)

    def _open(self) -> Rows | None:
        """The stored rows if they are whole; the dataset then knows the damaged files without reading them."""
        try:
            damaged = json.loads((self.folder / "damaged.json").read_text())
        except (OSError, ValueError):
            return None
        raw = open_rows(self.folder / "raw.npy", len(self) * self.variants)
        if raw is not None:
            self.dataset.damaged.update(damaged)
        return raw

    def _key(self) -> str:
        """Hash of all that the stored numbers depend on; the latent statistics are not part of it."""
        seed = self.dataset.seed if self.variants > 1 else None
        settings = self.dataset.preprocess.model_dump_json(exclude={"depth"})
        parts = (type(self.first_stage).__name__, settings, self.dataset.source.fingerprint(), self.variants, seed, self.dtype.name)
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
        digest.update(weights_digest(self.first_stage).encode())
        return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Hash of a module's weights and buffers, a first stage's latent statistics left out."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        if name not in ("mean", "std"):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _encode_raw(first_stage: FirstStage, images: Tensor) -> Tensor:
    """`FirstStage.encode_raw` in evaluation mode (no dropout), on the first stage's device."""
    training = first_stage.training
    first_stage.eval()
    try:
        return first_stage.encode_raw(images.to(first_stage.mean.device))
    finally:
        first_stage.train(training)


@torch.no_grad()
def latent_statistics(first_stage: FirstStage, batches: Iterable[Batch]) -> tuple[Float[Tensor, " z"], Float[Tensor, ""]]:
    """Mean per channel and one standard deviation of unnormalised latents sampled from the posterior, over batches with ``image``.

    Exact over the noise: the variance is that of the means plus the mean of the posterior variances. Summed in float64. The first stage's
    own statistics stay as they are. Raises: ValueError without any batch.
    """
    kept = first_stage.mean.clone(), first_stage.std.clone()
    count, total, squares = 0, torch.zeros(first_stage.channels, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    first_stage.set_statistics(torch.zeros_like(kept[0]), torch.ones_like(kept[1]))
    try:
        for batch in batches:
            raw = _encode_raw(first_stage, batch["image"])
            mean = first_stage.to_latent(raw)
            deviation = first_stage.to_latent(raw, torch.ones_like) - mean
            mean, deviation = mean.double().cpu(), deviation.double().cpu()
            total += mean.sum((0, 2, 3))
            squares += mean.square().sum() + deviation.square().sum()
            count += mean[:, 0].numel()
    finally:
        first_stage.set_statistics(*kept)
    if not count:
        raise ValueError("latent statistics need at least one batch of images: the data is empty")
    average = total / count
    variance = (squares / count - average.square().sum()) / len(average)
    return average.float(), variance.clamp(min=0).sqrt().float()
