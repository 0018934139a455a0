"""What a folder of images says: which files, captions, classes and split, by the ImageFolder conventions; and what is wrong with it."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from latentworks.data.annotations import Annotation, Annotations, annotate, set_apart
from latentworks.data.files import SUFFIXES
from latentworks.types import Box

__all__ = ["HELD_OUT", "Entry", "Listing", "Split", "hashed_fraction", "list_folder"]

Split = Literal["train", "held_out"]

HELD_OUT = 0.05
"""The share of images held out where the folder names no split itself."""

_ENOUGH = 20  # images from which at least one is held out
_SPLITS: dict[str, Split] = {
    "train": "train", "held_out": "held_out", "test": "held_out", "val": "held_out", "valid": "held_out", "validation": "held_out",
}  # fmt: skip
_NOTICES = {"attribution", "authors", "changelog", "copying", "copyright", "credits", "licence", "license", "notice", "readme"}
_MOST_CLASSES = 100_000  # a larger label is a mistake, and would make a table of that many rows


class Entry(NamedTuple):
    """One image of a folder: its path below the folder, its captions (the main one first), its class and the part it belongs to.

    ``boxes``: None where nobody looked for objects. ``segmentation``, ``mask``: the files of its label map and of its hole.
    """

    name: str
    text: tuple[str, ...] = ()
    label: int | None = None
    split: Split = "train"
    boxes: tuple[Box, ...] | None = None
    segmentation: str | None = None
    mask: str | None = None


@dataclass
class Listing:
    """A folder's images by name, the names of its classes, and each mistake in one line (then the rest is what could be made of it).

    ``classes`` are of whole images, ``categories`` of objects in boxes.
    """

    entries: list[Entry] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    unlisted: list[str] = field(default_factory=list)  # images metadata.jsonl does not name
    problems: list[str] = field(default_factory=list)


class _Row(NamedTuple):
    """What is known of one image before the whole folder has been seen."""

    text: tuple[str, ...] = ()
    label: int | str | None = None
    split: Split | None = None


def hashed_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone: the same on every machine, for good."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def list_folder(folder: Path) -> Listing:
    """Everything a folder says, without opening an image.

    Where there is a metadata.jsonl (``file_name``, and any of ``text``, ``aliases``, ``label``, ``split``), it says it all; otherwise
    captions come from files of the same stem with .txt, one a line, and two or more sub-folders holding all images are the classes.
    Folders called train and test (or validation) are the split; failing that, `HELD_OUT` of the images by the hash of their names.
    Boxes, label maps, masks and COCO's captions are found beside the images (`annotations.py`) in any case.
    Hidden files do not count. Raises: ValueError if there is no such folder or no image in it.
    """
    if not folder.exists():
        raise ValueError(f"{folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder the images are in")
    names = sorted(_walk(folder, "", set()))
    images, maps, masks = set_apart([name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES])
    if not images:
        raise ValueError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    found = annotate(folder, names, images)
    listing = Listing(categories=found.categories, problems=found.problems)
    tables = [name for name in names if PurePosixPath(name).name == "metadata.jsonl"]
    if tables:
        rows = _from_metadata(folder, tables, set(images), listing)
        listing.unlisted = [name for name in images if name not in rows]
    else:
        rows = _from_files(folder, names, images, listing, found)
    rows = {name: _completed(row, found.of.get(name, Annotation())) for name, row in rows.items()}
    labels = _labels(rows, listing)
    splits = _splits(rows, listing)
    boxes = {name: annotation.boxes for name, annotation in found.of.items()}
    listing.entries = [
        Entry(name, rows[name].text, labels[name], splits[name], boxes.get(name), maps.get(name), masks.get(name)) for name in sorted(rows)
    ]
    if not rows and not listing.problems:
        listing.problems.append(f"{folder / tables[0]} names no image")
    return listing


def _completed(row: _Row, annotation: Annotation) -> _Row:
    """What COCO's tables say where nothing nearer does."""
    return row._replace(text=row.text or annotation.text, split=row.split or _SPLITS.get(annotation.split or ""))


def _walk(folder: Path, prefix: str, seen: set[tuple[int, int]]) -> list[str]:
    """Names of all files below, with /. Links are followed, but no folder is entered twice."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return []
    seen.add((status.st_dev, status.st_ino))
    names = []
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            if item.is_dir():
                names += _walk(folder / item.name, f"{prefix}{item.name}/", seen)
            else:
                names.append(prefix + item.name)
    return names


def _from_metadata(folder: Path, tables: list[str], images: set[str], listing: Listing) -> dict[str, _Row]:
    """The rows of every metadata.jsonl; file names are relative to the table's folder."""
    rows: dict[str, _Row] = {}
    for table in tables:
        try:
            lines = (folder / table).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            listing.problems.append(f"{folder / table} is not UTF-8 text; save it as UTF-8")
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, row = _parse(line, PurePosixPath(table).parent, images)
                if name in rows:
                    raise ValueError(f"{name!r} is listed twice; remove one")
                rows[name] = row
            except ValueError as error:
                listing.problems.append(f"{folder / table} line {number}: {error}")
    return rows


def _parse(line: str, parent: PurePosixPath, images: set[str]) -> tuple[str, _Row]:
    """One line of metadata.jsonl. Raises: ValueError naming the field and the image."""
    values: Any = json.loads(line)
    given = values.get("file_name") if isinstance(values, dict) else None
    if not isinstance(given, str):
        raise ValueError('expected {"file_name": "a.png", "text": "a caption"}, a string each')
    name = os.path.normpath(parent / given).replace(os.sep, "/")
    if name not in images:
        raise ValueError(f"a caption without its image: {given!r} is not in the folder")
    text, aliases, label, split = values.get("text"), values.get("aliases"), values.get("label"), values.get("split")
    if not isinstance(text, str | None):
        raise ValueError(f"text of {given!r} must be a string, not {text!r}")
    if aliases is not None and not (isinstance(aliases, list) and all(isinstance(alias, str) for alias in aliases)):
        raise ValueError(f"aliases of {given!r} must be a list of strings, not {aliases!r}")
    if label is not None and not isinstance(label, str) and (type(label) is not int or not 0 <= label < _MOST_CLASSES):
        raise ValueError(f"label of {given!r} must be a name or an integer from 0 to {_MOST_CLASSES - 1}, not {label!r}")
    if split is not None and split not in _SPLITS:
        raise ValueError(f"split of {given!r} must be one of {', '.join(_SPLITS)}, not {split!r}")
    captions = tuple(caption.strip() for caption in (text or "", *(aliases or ())) if caption.strip())
    return name, _Row(captions, label, _SPLITS[split] if split is not None else None)


def _from_files(folder: Path, names: list[str], images: list[str], listing: Listing, found: Annotations) -> dict[str, _Row]:
    """Captions of the same stem, and classes from the folders unless those are the parts of an annotated set."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    captions: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for name in names:
        path = PurePosixPath(name)
        stem = str(path.with_suffix(""))
        if path.suffix.lower() != ".txt" or name in found.files or (stem not in stems and path.stem.lower() in _NOTICES):
            continue
        if stem not in stems:
            listing.problems.append(f"{folder / name} is a caption without its image; add the image or remove the caption")
            continue
        try:
            lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
            captions[stem] = tuple(line.strip() for line in lines if line.strip())
        except UnicodeDecodeError:
            listing.problems.append(f"{folder / name} is not UTF-8 text; save it as UTF-8")
    skip = 1 if _has_split_folders(images) else 0
    parents = {name: PurePosixPath(name).parent.parts[skip:] for name in images}
    as_classes = len(set(parents.values())) > 1 and all(len(parts) == 1 for parts in parents.values()) and not found.of
    return {
        name: _Row(captions[str(PurePosixPath(name).with_suffix(""))], parts[0] if as_classes else None) for name, parts in parents.items()
    }


def _has_split_folders(names: Iterable[str]) -> bool:
    """Whether every image lies in a folder called train, test or the like, and both parts are there."""
    tops = {top if rest else "" for top, _, rest in (name.partition("/") for name in names)}
    return {_SPLITS.get(top) for top in tops} == {"train", "held_out"}


def _labels(rows: dict[str, _Row], listing: Listing) -> dict[str, int | None]:
    """The index of each image's class; names become indices in alphabetical order."""
    kinds: dict[type, str] = {}
    for name, row in rows.items():
        kinds.setdefault(type(row.label), name)
    if len(kinds) > 1:
        first, second = sorted(kinds.values(), key=lambda name: (rows[name].label is not None, name))[:2]
        one, other = rows[first].label, rows[second].label
        listing.problems.append(f"label: {first} has {one!r}, {second} has {other!r}; give all names or all integers")
        return dict.fromkeys(rows)
    labels = [row.label for row in rows.values()]
    known = {label for label in labels if label is not None}
    if str in kinds:
        listing.classes = tuple(sorted(str(label) for label in known))
    elif known:
        listing.classes = tuple(str(i) for i in range(1 + max(int(label) for label in known)))
    index = {name: i for i, name in enumerate(listing.classes)}
    return {name: None if row.label is None else index[str(row.label)] for name, row in rows.items()}


def _splits(rows: dict[str, _Row], listing: Listing) -> dict[str, Split]:
    """The part each image belongs to: as told, by the folder's name, else by the hash of the image's name."""
    told = [name for name, row in rows.items() if row.split is not None]
    if told:
        silent = [name for name, row in rows.items() if row.split is None]
        if silent:
            listing.problems.append(f"split: {silent[0]} has none, {told[0]} has {rows[told[0]].split}; give every image one")
        return {name: row.split or "train" for name, row in rows.items()}
    if _has_split_folders(rows):
        return {name: _SPLITS[name.partition("/")[0]] for name in rows}
    if len(rows) < _ENOUGH:
        return dict.fromkeys(rows, "train")
    least = min(rows, key=hashed_fraction)
    return {name: "held_out" if name == least or hashed_fraction(name) < HELD_OUT else "train" for name in rows}
