"""A folder of images as a sequence of samples, all of one channel count and depth."""

import hashlib
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from latentworks.data.files import CorruptImage, Header, as_hole, read_header, read_image, read_labels
from latentworks.data.listing import Entry, Listing, Split, list_folder

__all__ = ["VOID", "Entry", "FolderSource", "Need", "Sample", "convert_channels", "convert_depth"]

Need = Literal["text", "boxes", "segmentation"]
"""What a folder may say of an image, and a model may need to know."""

VOID = 255
"""The value of a label map's pixels that belong to no class, as in Pascal VOC and Cityscapes."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow


class Sample(NamedTuple):
    """One image ``h w c`` with what its folder says of it; captions: the main one first."""

    name: str
    image: np.ndarray
    text: tuple[str, ...] = ()
    label: int | None = None


class FolderSource:
    """The images of a folder, or of one part of it; see `list_folder` for how captions, classes and the split are found.

    ``channels``: convert every image to that many; None: they must agree. Depths that differ are widened. ``needs`` leaves images out of
    which the folder does not say that. ``classes`` are of whole images, ``categories`` of objects in boxes; ``sizes``: height and width of
    each image that has a header. Raises: ValueError if the folder is missing, empty, contradicts itself, or mixes channel counts.
    """

    def __init__(self, path: Path, split: Split | None = None, channels: int | None = None, needs: Collection[Need] = ()) -> None:
        if split not in (None, "train", "held_out"):
            raise ValueError(f"split {split!r} must be train, held_out or None")
        listing = list_folder(path)
        if listing.problems:
            raise ValueError(_first(listing))
        self.path, self.split, self.classes, self.categories = path, split, listing.classes, listing.categories
        usable = [entry for entry in listing.entries if all(_says(entry, need) for need in needs)]
        counts = Counter(entry.split for entry in usable)
        self.counts: dict[Split, int] = {"train": counts["train"], "held_out": counts["held_out"]}
        self.entries = [entry for entry in usable if split in (None, entry.split)]
        if not self.entries:
            missing = [need for need in needs if not any(_says(entry, need) for entry in listing.entries)]
            raise ValueError(f"{path} has no {_wanted(split, missing)}")
        headers = _headers(path, listing.entries)  # of every part, so that all parts agree
        self.sizes = {name: (header.height, header.width) for name, header in headers.items()}
        self.channels = _channels(path, headers, channels)
        self.dtype: np.dtype[Any] = np.result_type(*(h.dtype for h in headers.values())) if headers else np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Sample:
        """The sample at ``index``, decoded anew. Raises: CorruptImage naming the file."""
        entry = self.entries[index]
        image = convert_depth(convert_channels(read_image(self.path / entry.name), self.channels), self.dtype)
        return Sample(entry.name, image, entry.text, entry.label)

    def labels(self, index: int) -> np.ndarray:
        """The label map ``h w`` of an image, `VOID` as -1. Raises: CorruptImage naming the file, also where its size is not the image's."""
        values = self._beside(index, self.entries[index].segmentation).astype(np.int16)
        return np.where(values == VOID, np.int16(-1), values)

    def hole(self, index: int) -> np.ndarray:
        """The mask ``h w`` of an image, true where its hole is. Raises: as `labels`."""
        return as_hole(self._beside(index, self.entries[index].mask))

    def _beside(self, index: int, name: str | None) -> np.ndarray:
        """A map of one number a pixel that belongs to an image."""
        if name is None:
            raise ValueError(f"{self.entries[index].name} has no such file beside it")
        values, size = read_labels(self.path / name), self.sizes.get(self.entries[index].name)
        if size not in (None, values.shape):
            raise CorruptImage(self.path / name, f"its size {values.shape} (height, width) is not that of its image, {size}")
        return values

    def fingerprint(self) -> str:
        """A hash that changes whenever a pixel may have: of names, sizes and times of the files, channels and depth; not of captions."""
        digest = hashlib.blake2b(repr((self.channels, str(self.dtype))).encode(), digest_size=16)
        for entry in self.entries:
            file = self.path / entry.name
            status = file.stat() if file.exists() else file.lstat()  # a link to nothing is a damaged image
            digest.update(repr((entry.name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()


def convert_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """``h w c`` between grey, grey + alpha, RGB and RGBA in the same depth; what was transparent becomes white. Raises: ValueError."""
    have = image.shape[2]
    if have == channels:
        return image
    if have > 4 or not 1 <= channels <= 4:
        raise ValueError(f"an image of {have} channels cannot become one of {channels}; only 1 to 4 are grey, RGB and their alpha")
    white = _white(image.dtype)
    colour = image[..., : have - 1 + have % 2].astype(np.float64)
    alpha = image[..., have - 1 :] if have % 2 == 0 else np.full_like(image[..., :1], white)
    if channels % 2:
        colour = white + (colour - white) * (alpha / white)
    wanted = channels - 1 + channels % 2
    if wanted < colour.shape[2]:
        colour = (colour @ np.array(_LUMA))[..., None]
    colour = _rounded(np.repeat(colour, wanted // colour.shape[2], axis=2), image.dtype)
    return colour if channels % 2 else np.concatenate([colour, alpha], axis=2)


def convert_depth(image: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Values rescaled so that white stays white: 255 of uint8, 65535 of uint16, 1 of float32."""
    return image if image.dtype == dtype else _rounded(image * (float(_white(dtype)) / _white(image.dtype)), dtype)


def _white(dtype: np.dtype[Any]) -> int:
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _rounded(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)


def _first(listing: Listing) -> str:
    """One line for all problems of a folder."""
    more = len(listing.problems) - 1
    return listing.problems[0] + (f" (and {more} more: `lw data check` lists them)" if more else "")


def _says(entry: Entry, need: Need) -> bool:
    return bool(entry.text) if need == "text" else getattr(entry, need) is not None


def _wanted(split: Split | None, missing: list[Need]) -> str:
    """What an empty source lacks, and the way out."""
    part = f"{split} " if split else ""
    match missing[:1]:
        case ["text"]:
            return f"{part}image with a caption; add .txt files of the same stem, or metadata.jsonl"
        case ["boxes"]:
            return f"{part}image with boxes; add COCO's instances.json, or YOLO's .txt in a folder labels beside images"
        case ["segmentation"]:
            return f"{part}image with a label map; add PNGs of the same names in a folder labels beside images"
    if split == "held_out":
        return "held_out image; give at least 20 images, or the split yourself: folders train and test, or metadata.jsonl"
    return "train image; all are held out by folders or metadata.jsonl"


def _headers(path: Path, entries: list[Entry]) -> dict[str, Header]:
    """By name, of the images that have one: damaged files are counted and named when they are read."""
    headers = {}
    for entry in entries:
        try:
            headers[entry.name] = read_header(path / entry.name)
        except CorruptImage:
            continue
    return headers


def _channels(path: Path, headers: dict[str, Header], channels: int | None) -> int:
    """The channel count all images have or can be given. Raises: ValueError naming two that differ, and the way out."""
    found: dict[int, str] = {}
    for name, header in headers.items():
        found.setdefault(header.channels, name)
    if channels is None:
        if not found:
            raise ValueError(f"{path}: not one image can be read; `lw data check` says why")
        if len(found) > 1:
            (a, first), (b, second) = list(found.items())[:2]
            way_out = f"set channels={3 if max(found) > 2 else 1}" if max(found) <= 4 else "keep the images of one kind"
            raise ValueError(f"{path}: mixed channel counts: {first} has {a}, {second} has {b}; {way_out} to train on all of them")
        return next(iter(found))
    for have, name in found.items():
        if have != channels and (have > 4 or not 1 <= channels <= 4):
            raise ValueError(f"channels: {name} has {have}, which cannot become {channels}; leave channels at {have}")
    return channels
