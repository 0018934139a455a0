"""The judge of composed scenes: a net that names every pixel, and what follows from its answers for boxes, classes and captions."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from latentworks.data.scene_words import CATEGORIES, RELATIONS, Relation

__all__ = ["SINGLE", "Judge", "Said", "Segmenter", "centres", "main_object", "parse", "pixels", "related", "within"]

FOLDER = Path(__file__).parent / "judges"
ANSWERS = 1 + len(CATEGORIES)  # 0 is background, category k is k + 1
SINGLE = 64  # pixels a side at which an object that is alone is looked at
FILLED, COVERED = 0.5, 0.1  # of a box, by what is around the pixels of a category and by the pixels: from there on it is in the box
ENOUGH, ALONE = 0.005, 0.02  # of all pixels, from which a category counts as present, and as the object that is alone
BATCH = 64

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """What every pixel shows: images ``b 3 h w`` whose sides divide by 8 -> whether it is an object ``b h w``, and which ``b 48 h/4 w/4``.

    Both are logits. Where an object ends needs every pixel; which one it is does not, and learns faster by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _block(12, 24))
        self.quarter = nn.Sequential(nn.PixelUnshuffle(2), _block(96, 64), _block(64, 64))
        self.eighth = nn.Sequential(nn.MaxPool2d(2), _block(64, 160), *(_block(160, 160) for _ in range(3)), nn.Conv2d(160, 64, 1))
        self.joined = _block(128, 96)
        self.kind = nn.Conv2d(96, len(CATEGORIES), 1)
        self.to_half = nn.PixelShuffle(2)
        self.shape = nn.Sequential(_block(48, 16), nn.Conv2d(16, 4, 1), nn.PixelShuffle(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        half = self.stem(images)
        x = self.quarter(half)
        x = self.joined(torch.cat([F.interpolate(self.eighth(x), scale_factor=2), x], dim=1))
        return self.shape(torch.cat([self.to_half(x), half], dim=1))[:, 0], self.kind(x)

    def label(self, images: Tensor) -> Tensor:
        """Label maps ``b h w``: 0 is background, category k is k + 1."""
        shape, kind = self(images)
        kind = F.interpolate(kind, size=shape.shape[1:], mode="bilinear").argmax(dim=1)
        return torch.where(shape > 0, kind + 1, 0)


def pixels(images: np.ndarray) -> Tensor:
    """Images ``b h w c`` in 8 bits as the judge sees them: ``b c h w`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def within(labels: np.ndarray, box: Corners) -> set[int]:
    """The categories that fill a box of a label map.

    Of one that does, the box around its pixels inside has `FILLED` of the box's area at least, the pixels themselves `COVERED`.
    """
    x0, y0, x1, y1 = (round(place) for place in box)
    part = labels[max(y0, 0) : y1, max(x0, 0) : x1]
    filled = set()
    for value in np.unique(part[part > 0]).tolist():
        y, x = np.nonzero(part == value)
        if (np.ptp(x) + 1) * (np.ptp(y) + 1) >= FILLED * part.size and len(x) >= COVERED * part.size:
            filled.add(value - 1)
    return filled


def main_object(labels: np.ndarray) -> int | None:
    """The category of most pixels that are not background; None where there are too few to be an object."""
    counts = np.bincount(labels.ravel(), minlength=ANSWERS)[1:]
    return int(counts.argmax()) if counts.max() >= ALONE * labels.size else None


class Said(NamedTuple):
    """What a caption of composed scenes says: its kinds of objects, and the relation of the first two."""

    kinds: tuple[int, ...]
    relation: Relation


def parse(caption: str) -> Said:
    """The inverse of `scene_words.caption`. Raises: ValueError for other words."""
    relation = next((relation for relation in RELATIONS if f" {relation.words} " in caption), None)
    if relation is None:
        raise ValueError(f"caption {caption!r} names no relation: {', '.join(relation.words for relation in RELATIONS)}")
    first, rest = caption.split(f" {relation.words} ")
    names = {name: k for k, category in enumerate(CATEGORIES) for name in (category.name, category.plural)}
    try:
        return Said(tuple(names[words.partition(" ")[2]] for words in (first, *rest.split(", and "))), relation)
    except KeyError as error:
        raise ValueError(f"caption {caption!r} names {error}, which is no category of composed scenes") from None


def centres(labels: np.ndarray) -> dict[int, tuple[float, float]]:
    """The categories that are present in a label map (0: background), with the centre of their pixels, (x, y) relative to the sides."""
    counts = np.bincount(labels.ravel(), minlength=ANSWERS)
    present = [k for k in range(len(CATEGORIES)) if counts[k + 1] >= ENOUGH * labels.size]
    places = {k: np.nonzero(labels == k + 1) for k in present}
    return {k: (float(x.mean()) / labels.shape[1], float(y.mean()) / labels.shape[0]) for k, (y, x) in places.items()}


def related(said: Said, places: dict[int, tuple[float, float]]) -> bool:
    """Whether the centres of the first two kinds lie as the caption says."""
    first, second = (places[kind][said.relation.axis] for kind in said.kinds[:2])
    return first < second if said.relation.before else first > second


def _groups(images: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    images = iter(images)
    while group := list(islice(images, BATCH)):
        yield group


class Judge:
    """The net with the weights of ``folder``, for images in 8 bits, ``h w 3``, all of one size."""

    def __init__(self, folder: Path = FOLDER) -> None:
        if not (folder / "judge.safetensors").is_file():
            raise ValueError(f"{folder} holds no judge: train it with python benchmarks/judges.py")
        self.net = Segmenter()
        self.net.load_state_dict({name: weights.float() for name, weights in load_file(folder / "judge.safetensors").items()})
        self.net.eval()

    @torch.no_grad()
    def label(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The label map of each image, ``h w``: 0 is background, category k is k + 1."""
        for group in _groups(images):
            yield from self.net.label(pixels(np.stack(group))).numpy()

    def classify(self, images: Iterable[np.ndarray]) -> Iterator[int | None]:
        """The category of each image of one object, looked at in the size the net has learnt such images in."""
        small = (np.asarray(Image.fromarray(image).resize((SINGLE, SINGLE), Image.Resampling.BOX)) for image in images)
        yield from map(main_object, self.label(small))
