"""What stands beside images in a folder: boxes (COCO's json, YOLO's txt), captions (COCO), label maps and masks (PNG)."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from latentworks.types import Box

__all__ = ["Annotation", "Annotations", "annotate", "is_yolo", "set_apart"]

LABEL_FOLDERS = ("labels", "label_maps", "annotations", "segmentation")
"""Folders beside ``images`` with a file of the same name for each image."""

_MASK = "_mask"
_COCO = re.compile(r"(^|[_.-])(instances|captions|annotations|coco)([_.0-9-]|$)")
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_YOLO = re.compile(rf"\s*\d+(\s+{_NUMBER}){{4}}\s*")


class Annotation(NamedTuple):
    """Of one image: its boxes (None: nobody looked), captions, and the files of its label map and its mask."""

    boxes: tuple[Box, ...] | None = None
    text: tuple[str, ...] = ()
    segmentation: str | None = None
    mask: str | None = None
    split: str | None = None


@dataclass
class Annotations:
    """By image; ``categories``: names of the boxes' classes (numbers where there are none); ``files``: each .txt that holds no caption."""

    of: dict[str, Annotation] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    categories: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


def set_apart(images: list[str]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """The images that are images; label maps by image; masks by image. Maps lie in a folder beside ``images``, masks are ``x_mask.png``."""
    by_stem = {_stem(name): name for name in images}
    masks = {
        by_stem[stem.removesuffix(_MASK)]: name
        for stem, name in by_stem.items()
        if stem.endswith(_MASK) and stem.removesuffix(_MASK) in by_stem
    }
    maps: dict[str, str] = {}
    for stem, name in by_stem.items():
        for other in _beside(stem):
            if other in by_stem:
                maps[name] = by_stem[other]
    aside = {*masks.values(), *maps.values()}
    return [name for name in images if name not in aside], maps, masks


def annotate(folder: Path, names: list[str], images: list[str]) -> Annotations:
    """Everything that is said of a folder's images beside metadata.jsonl, .txt captions and class folders."""
    found = Annotations()
    _coco(folder, names, images, found)
    _yolo(folder, names, images, found)
    return found


def is_yolo(text: str) -> bool:
    """Whether a .txt holds boxes rather than captions: every line is a class and four numbers. An empty one is neither."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and all(_YOLO.fullmatch(line) for line in lines)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _beside(stem: str) -> Iterable[str]:
    """Where the annotation of an image of this stem may be: ``images`` in its path replaced by the name of a label folder."""
    parts = stem.split("/")
    for i, part in enumerate(parts[:-1]):
        if part == "images":
            yield from ("/".join([*parts[:i], other, *parts[i + 1 :]]) for other in LABEL_FOLDERS)


class _Coco:
    """What COCO's tables say of the images, gathered over all of them."""

    def __init__(self, tables: dict[str, dict[str, Any]], images: list[str]) -> None:
        self.names = {int(kind["id"]): str(kind["name"]) for values in tables.values() for kind in values.get("categories", ())}
        self.places = {number: i for i, number in enumerate(sorted(self.names))}
        self.by_end: dict[str, list[str]] = defaultdict(list)
        for image in images:
            self.by_end[PurePosixPath(image).name].append(image)
        self.boxes: dict[str, list[Box]] = {}
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.splits: dict[str, str | None] = {}

    def add(self, name: str, values: dict[str, Any]) -> None:
        """One table. Raises: KeyError, TypeError or ValueError where it is not as COCO's are."""
        rows = {row["id"]: row for row in values["images"]}
        places = {number: _image_of(row["file_name"], name, self.by_end) for number, row in rows.items()}
        for number, image in places.items():
            if image is not None:
                self.splits[image] = rows[number].get("split") or _split_of(name) or self.splits.get(image)
                if values.get("categories"):
                    self.boxes.setdefault(image, [])
        for entry in values["annotations"]:
            image = places[entry["image_id"]]
            if image is not None and "caption" in entry:
                self.texts[image].append(" ".join(str(entry["caption"]).split()))
            elif image is not None and "bbox" in entry:
                self.boxes[image].append(_box(entry, rows[entry["image_id"]], self.places))


def _coco(folder: Path, names: list[str], images: list[str], found: Annotations) -> None:
    tables = [name for name in names if name.lower().endswith(".json") and _COCO.search(PurePosixPath(name).stem.lower())]
    loaded = {name: values for name in tables if (values := _table(folder / name, found)) is not None}
    name = next(iter(loaded), "")
    try:
        coco = _Coco(loaded, images)
        for name, values in loaded.items():
            coco.add(name, values)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        found.problems.append(f"{folder / name} is not COCO's format: {type(error).__name__} {error}")
        return
    found.categories = tuple(coco.names[number] for number in sorted(coco.names))
    several = len(set(coco.splits.values())) > 1  # a table of one part alone says nothing of what is held out
    for image, split in coco.splits.items():
        boxes = tuple(coco.boxes[image]) if image in coco.boxes else None
        found.of[image] = Annotation(boxes, tuple(coco.texts[image]), split=split if several else None)


def _table(path: Path, found: Annotations) -> dict[str, Any] | None:
    """A json file if it is one of COCO's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found.problems.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
        return None
    return values if isinstance(values, dict) and {"images", "annotations"} <= values.keys() else None


def _image_of(file_name: str, table: str, by_end: dict[str, list[str]]) -> str | None:
    """The image a table means: below the table's folder, else the only one whose path ends so."""
    candidates = by_end.get(PurePosixPath(file_name).name, [])
    beside = str(PurePosixPath(table).parent / file_name)
    if beside in candidates:
        return beside
    ends = [image for image in candidates if f"/{image}".endswith(f"/{file_name}")]
    return ends[0] if len(ends) == 1 else None


def _split_of(table: str) -> str | None:
    """ "train" of instances_train2017.json."""
    words = re.findall(r"train|val|test|held_out", PurePosixPath(table).name.lower())
    return words[0] if len(words) == 1 else None


def _box(entry: dict[str, Any], row: dict[str, Any], place: dict[int, int]) -> Box:
    """COCO's x, y, width, height in pixels, cut at the image's edges, as parts of its sides."""
    x, y, w, h = (float(value) for value in entry["bbox"])
    width, height = row["width"], row["height"]
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise ValueError(f"annotation {entry.get('id')} has bbox {entry['bbox']} outside its image of {width} x {height}")
    label = place[entry["category_id"]]
    box = Box(x=left / width, y=top / height, width=(right - left) / width, height=(bottom - top) / height, label=label)
    if entry.get("iscrowd"):
        box["group"] = True
    return box


def _yolo(folder: Path, names: list[str], images: list[str], found: Annotations) -> None:
    """Files of five numbers a line, beside their image or in a ``labels`` folder, where an empty one says that there is nothing."""
    texts = {_stem(name): name for name in names if name.lower().endswith(".txt")}
    most = -1
    for image in images:
        elsewhere = [texts[other] for other in _beside(_stem(image)) if other in texts]
        for name in (*elsewhere, *([texts[_stem(image)]] if _stem(image) in texts else ()))[:1]:
            try:
                text = (folder / name).read_text(encoding="utf-8-sig")
            except UnicodeDecodeError:
                continue  # as a caption it is complained about
            if is_yolo(text) or (elsewhere and not text.strip()):
                boxes = [_yolo_box(line, folder / name, found) for line in text.splitlines() if line.strip()]
                kept = tuple(box for box in boxes if box is not None)
                most = max([most, *(int(box["label"]) for box in kept)])
                found.of[image] = found.of.get(image, Annotation())._replace(boxes=kept)
                found.files.add(name)
    if found.files:
        found.categories = _yolo_names(folder, names, most + 1, found)


def _yolo_box(line: str, path: Path, found: Annotations) -> Box | None:
    """class, centre and size, relative to the image."""
    number, *rest = line.split()
    cx, cy, w, h = map(float, rest)
    left, top, right, bottom = max(cx - w / 2, 0.0), max(cy - h / 2, 0.0), min(cx + w / 2, 1.0), min(cy + h / 2, 1.0)
    if right <= left or bottom <= top:
        found.problems.append(f"{path}: the box {line.strip()!r} has no area inside its image")
        return None
    return Box(x=left, y=top, width=right - left, height=bottom - top, label=int(number))


def _yolo_names(folder: Path, names: list[str], count: int, found: Annotations) -> tuple[str, ...]:
    """Names from data.yaml or classes.txt, else the numbers."""
    for name in names:
        end = PurePosixPath(name).name
        if end in ("data.yaml", "data.yml", "dataset.yaml"):
            try:
                values = yaml.safe_load((folder / name).read_text(encoding="utf-8"))  # its keys may be numbers, which settings have none of
                listed = values.get("names")
                listed = [listed[i] for i in sorted(listed)] if isinstance(listed, dict) else listed
            except (AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
                found.problems.append(f"{folder / name} cannot be read: {' '.join(str(error).split())}")
                continue
        elif end in ("classes.txt", "obj.names"):
            found.files.add(name)
            listed = [line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            continue
        if isinstance(listed, list) and len(listed) >= count:
            return tuple(map(str, listed))
        found.problems.append(f"{folder / name} names {len(listed or ())} classes, but boxes have classes up to {count - 1}")
    return tuple(map(str, range(count)))
