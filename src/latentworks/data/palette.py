"""The colours of label maps: what a palette PNG says, colours for classes that have none, and maps painted in them read back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from latentworks.data.files import CorruptImage

__all__ = ["Palette", "class_colours", "paint", "palette_of", "read_map"]

Palette = tuple[tuple[int, int, int], ...]
"""RGB of 0 to 255 for each class, in order."""


def class_colours(classes: int) -> Palette:
    """Colours told apart easily, as Pascal VOC has them: the bits of a class, from the lowest, are the highest bits of R, G and B."""

    def colour(label: int) -> tuple[int, int, int]:
        red, green, blue = (sum((label >> 3 * i + channel & 1) << 7 - i for i in range(8)) for channel in range(3))
        return red, green, blue

    return tuple(colour(label) for label in range(classes))


def palette_of(path: Path, classes: int) -> Palette:
    """The first colours of a palette PNG; `class_colours` where the file has none, or too few. Raises: CorruptImage."""
    try:
        with Image.open(path) as image:
            colours = image.getpalette("RGB") if image.mode == "P" else None
    except OSError as error:
        raise CorruptImage(path, str(error)) from None
    if colours is None or len(colours) < 3 * classes:
        return class_colours(classes)
    return tuple((colours[3 * i], colours[3 * i + 1], colours[3 * i + 2]) for i in range(classes))


def paint(labels: Int[np.ndarray, "*shape"], palette: Palette) -> UInt8[np.ndarray, "*shape 3"]:
    """A label map in colours; -1, no class, is white."""
    table = np.array([*palette, (255, 255, 255)], np.uint8)
    return np.asarray(table[labels])  # -1 is the last row


def read_map(image: Image.Image, classes: int, palette: Palette, names: Sequence[str] = (), void: int = 255) -> Int[np.ndarray, "h w"]:
    """A label map of a picture of numbers (grey or palette), or of one in the palette's colours; ``void`` becomes -1.

    Raises: ValueError naming the first value or colour that is no class, and those there are.
    """
    known = f"this model has {classes} classes: {_listed(classes, palette, names)}"
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        labels = np.asarray(image).astype(np.int64)
        labels[labels == void] = -1
        if (unknown := labels[labels >= classes]).size:
            raise ValueError(f"map: it has the value {unknown[0]}, but {known}")
        return labels
    if not palette:
        raise ValueError("map: its pixels are colours, but the classes of this model have none: give a grey PNG of their numbers")
    pixels = np.asarray(image.convert("RGB"))
    keys, table = _packed(pixels), _packed(np.array(palette, np.uint8))
    order = np.argsort(table)
    labels = order[np.searchsorted(table[order], keys).clip(max=len(table) - 1)]
    if (wrong := table[labels] != keys).any():
        colour = "#" + "".join(f"{value:02x}" for value in pixels[wrong][0])
        raise ValueError(f"map: it has the colour {colour}, which is no class: {known}")
    return np.asarray(labels, np.int64)


def _packed(colours: UInt8[np.ndarray, "*shape 3"]) -> Int[np.ndarray, "*shape"]:
    """One number a colour."""
    return np.asarray(colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1]))


def _listed(classes: int, palette: Palette, names: Sequence[str]) -> str:
    """The classes with their numbers and colours; the first eight of many."""
    colours = ["#" + "".join(f"{value:02x}" for value in colour) for colour in palette]
    shown = [" ".join([str(i), *names[i : i + 1], *colours[i : i + 1]]) for i in range(min(classes, 8))]
    return ", ".join(shown) + (f" and {classes - len(shown)} more" if classes > len(shown) else "")
