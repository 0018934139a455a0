"""Batches of images from a source: order, augmentation and captions are functions of (seed, step, index), so nothing has to be saved."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from latentworks.data.degrade import Degradation, degrade
from latentworks.data.files import CorruptImage
from latentworks.data.masks import draw_mask
from latentworks.data.progress import Progress
from latentworks.data.sources import FolderSource
from latentworks.data.transforms import PLAIN, Pixels, Preprocess, Variant, Window, to_tensor
from latentworks.random import generator, seed_of
from latentworks.types import Batch, Box

__all__ = ["Extras", "ImageDataset", "change_words", "indices_for"]

_CHUNK = 64  # images between two reports of progress


@dataclass(frozen=True)
class Extras:
    """What batches carry beside images, captions and classes, for the conditions of a model; nothing of it by default.

    ``boxes``: at most so many of an image, the largest ones, in an order of their own at each step. ``low_res``: a small version of each
    image, by which degradation and how many times smaller. ``holes``: a mask, the image's own where one is measured on it and it has one,
    else drawn anew at each step. ``word_dropout``, ``word_shuffle``: how captions are changed at each step, see `TextConfig`.
    """

    boxes: int = 0
    segmentation: bool = False
    low_res: tuple[Degradation, int] | None = None
    holes: bool = False
    word_dropout: float = 0.0
    word_shuffle: float = 0.0


class ImageDataset:
    """The images of a source, preprocessed.

    A file that cannot be read is skipped: the next readable one takes its place (``index`` stays), `skipped` names it. Fitted images are
    kept in memory up to ``budget`` bytes, which changes speed, never results. ``captions``: "all" draws one of an image's captions at each
    step, "main" takes the first. Raises: ValueError when the source's channels are not those of the settings.
    """

    def __init__(
        self,
        source: FolderSource,
        preprocess: Preprocess,
        seed: int = 0,
        captions: Literal["all", "main"] = "all",
        budget: int = 2**30,
        extras: Extras = Extras(),
    ) -> None:
        if preprocess.channels not in (None, source.channels):
            raise ValueError(
                f"channels: the images have {source.channels}, the settings say {preprocess.channels}: set data.channels={source.channels}"
            )
        self.source, self.preprocess, self.seed, self.captions, self.extras = source, preprocess, seed, captions, extras
        self.damaged: set[int] = set()  # indices of the files known to be damaged
        self._damaged_maps: set[str] = set()
        self._images: dict[int, Pixels] = {}
        self._room = budget
        self._has_text = any(entry.text for entry in source.entries)
        self._has_label = all(entry.label is not None for entry in source.entries)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> list[str]:
        """Names of the damaged files met so far."""
        return [*(self.source.entries[i].name for i in sorted(self.damaged)), *sorted(self._damaged_maps)]

    def indices_for(self, step: int, batch: int) -> list[int]:
        """The step's samples: every image once an epoch, in an order of its own each epoch."""
        return indices_for(len(self), self.seed, step, batch)

    def batch(self, indices: Sequence[int], step: int | None = None) -> Batch:
        """``image``, ``index`` and what `fields` gives; as drawn at ``step``, or the plain variant and main caption without one.

        Raises: ValueError when not one image of the source can be read.
        """
        variants = self._drawn(indices, step)
        return {"image": self.images(indices, variants), **self.fields(indices, step, variants)}

    def batches(self, size: int, most: int | None = None) -> Iterator[Batch]:
        """Every readable image once, in order and plain; of more than ``most`` files every second, third, .. one."""
        every = 1 if most is None else max(1, math.ceil(len(self) / most))
        readable = ((i, image) for i in range(0, len(self), every) if (image := self._fitted(i)) is not None)
        while group := list(islice(readable, size)):
            indices, images = zip(*group, strict=True)
            yield {"image": self._cut(images, [PLAIN] * len(images)), **self.fields(indices)}

    def load(self) -> Iterator[Progress]:
        """Read all files once: into memory as far as the budget goes, and to know the damaged ones."""
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            for i in range(start, stop):
                self._fitted(i)
            yield Progress(stop, len(self))

    def images(self, indices: Sequence[int], variants: Sequence[Variant]) -> Float[Tensor, "b c h w"]:
        """One variant of each image, in [-1, 1]."""
        return self._cut([self._readable(i) for i in indices], variants)

    def fields(self, indices: Sequence[int], step: int | None = None, variants: Sequence[Variant] | None = None) -> Batch:
        """``index``, ``text`` if any image has captions ("" where one has none), ``label`` if there are classes, and the `Extras`.

        ``variants``: what is shown of each image, which boxes, maps and small images follow; None: the plain ones. No image is read but for
        small ones.
        """
        entries = [self.source.entries[self._stand_in(i)] for i in indices]
        batch: Batch = {"index": torch.tensor(indices)}
        if self._has_text:
            batch["text"] = [self._caption(entry.text, i, step) for entry, i in zip(entries, indices, strict=True)]
        if self._has_label:
            batch["label"] = torch.tensor([entry.label for entry in entries])
        shown = [PLAIN] * len(indices) if variants is None else variants
        if self.extras.boxes:
            batch["boxes"] = [self._boxes(i, step, variant) for i, variant in zip(indices, shown, strict=True)]
        if self.extras.segmentation:
            batch["segmentation"] = torch.from_numpy(np.stack([self._labels(i, v) for i, v in zip(indices, shown, strict=True)]))
        if self.extras.low_res is not None:
            batch["low_res"] = to_tensor(np.stack([self._small(i, step, v) for i, v in zip(indices, shown, strict=True)]))
        if self.extras.holes:
            batch["mask"] = torch.from_numpy(np.stack([self._hole(i, step, v) for i, v in zip(indices, shown, strict=True)]))[:, None]
        return batch

    def _boxes(self, index: int, step: int | None, variant: Variant) -> list[Box]:
        entry = self.source.entries[self._stand_in(index)]
        found = self._window(index, variant).boxes(entry.boxes or ())
        found = sorted(found, key=lambda box: -box["width"] * box["height"])[: self.extras.boxes]
        if step is not None:
            np.random.default_rng(seed_of(self.seed, "boxes", step, index)).shuffle(found)
        return found

    def _labels(self, index: int, variant: Variant) -> Shaped[np.ndarray, "h w"]:
        """The label map of a variant; one that cannot be read says nothing (-1)."""
        place, size = self._stand_in(index), self.preprocess.out_size
        name = self.source.entries[place].segmentation
        if name is None or name in self._damaged_maps:
            return np.full((size, size), -1, np.int16)
        try:
            labels = self.source.labels(place)
        except CorruptImage:
            self._damaged_maps.add(name)
            return self._labels(index, variant)
        return self._window(index, variant).labels(labels, size, size)

    def _small(self, index: int, step: int | None, variant: Variant) -> Pixels:
        assert self.extras.low_res is not None
        kind, factor = self.extras.low_res
        square = self.preprocess.cut(self._readable(index), variant)
        return degrade(kind, square, factor, np.random.default_rng(seed_of(self.seed, "degradation", str(step), index)))

    def _hole(self, index: int, step: int | None, variant: Variant) -> Bool[np.ndarray, "h w"]:
        place, size = self._stand_in(index), self.preprocess.out_size
        if step is None and self.source.entries[place].mask is not None:
            return self._window(index, variant).labels(self.source.hole(place), size, size)
        return draw_mask(size, size, np.random.default_rng(seed_of(self.seed, "hole", str(step), index)))

    def _window(self, index: int, variant: Variant) -> Window:
        return self.preprocess.window(*self.source.sizes[self.source.entries[self._stand_in(index)].name], variant)

    def _drawn(self, indices: Sequence[int], step: int | None) -> list[Variant]:
        if step is None or not self.preprocess.varied:
            return [PLAIN] * len(indices)
        return [self.preprocess.draw(generator(self.seed, "variant", step, i)) for i in indices]

    def _caption(self, captions: tuple[str, ...], index: int, step: int | None) -> str:
        if not captions:
            return ""
        if step is None or self.captions == "main":
            return captions[0]
        caption = captions[0]
        if len(captions) > 1:
            caption = captions[int(torch.randint(len(captions), (), generator=generator(self.seed, "caption", step, index)))]
        if not (self.extras.word_dropout or self.extras.word_shuffle):
            return caption
        rng = np.random.default_rng(seed_of(self.seed, "words", step, index))
        return change_words(caption, self.extras.word_dropout, self.extras.word_shuffle, rng)

    def _fitted(self, index: int) -> Pixels | None:
        """What variants are cut from; None for a damaged file."""
        if index in self._images:
            return self._images[index]
        if index in self.damaged:
            return None
        try:
            image = self.preprocess.fit(self.source.read(index).image)
        except CorruptImage:
            self.damaged.add(index)
            return None
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._images[index] = image.copy()  # not a view, which would keep the whole file in memory
        return image

    def _readable(self, index: int) -> Pixels:
        """The fitted image, or that of its stand-in."""
        while (image := self._fitted(self._stand_in(index))) is None:
            pass  # now known to be damaged
        return image

    def _stand_in(self, index: int) -> int:
        """The index itself, or the next one, cyclically, that is not known to be damaged."""
        if len(self.damaged) == len(self):
            raise ValueError(f"not one image can be read: all {len(self)} files are damaged, the first is {self.skipped[0]}")
        while index in self.damaged:
            index = (index + 1) % len(self)
        return index

    def _cut(self, images: Sequence[Pixels], variants: Sequence[Variant]) -> Float[Tensor, "b c h w"]:
        return to_tensor(np.stack([self.preprocess.cut(image, variant) for image, variant in zip(images, variants, strict=True)]))


def change_words(caption: str, dropout: float, shuffle: float, rng: np.random.Generator) -> str:
    """With probability ``dropout`` only some of the words, any number from one to all, then with probability ``shuffle`` in any order."""
    words = caption.split()
    if words and rng.random() < dropout:
        kept = np.sort(rng.permutation(len(words))[: rng.integers(len(words)) + 1])
        words = [words[i] for i in kept]
    if rng.random() < shuffle:
        rng.shuffle(words)
    return " ".join(words)


def indices_for(n: int, seed: int, step: int, batch: int) -> list[int]:
    """The ``batch`` samples of a step (0-based): the endless row of epochs, each a permutation of 0..n-1, cut into batches."""
    places = range(step * batch, (step + 1) * batch)
    return [int(_order(n, seed, place // n)[place % n]) for place in places]


@lru_cache(maxsize=2)  # the two epochs a batch usually touches
def _order(n: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
    return torch.randperm(n, generator=generator(seed, "order", epoch))
