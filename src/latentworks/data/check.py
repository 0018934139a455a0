"""What is wrong with a folder of images, found before training does."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from latentworks.data.files import CorruptImage, read_image, read_labels
from latentworks.data.listing import Entry, Listing, list_folder

__all__ = ["Report", "check"]

_HUGE = 40_000_000  # pixels from which decoding one image at every epoch slows training down
_SHOWN = 20  # names of one finding that are printed


@dataclass
class Report:
    """What is known after ``done`` of ``total`` images."""

    total: int
    done: int = 0
    kinds: Counter[tuple[int, str]] = field(default_factory=Counter)  # (channels, depth) -> images
    corrupt: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)  # pixel-identical images
    straddling: list[list[str]] = field(default_factory=list)  # those of them in both parts of the split
    too_small: list[str] = field(default_factory=list)
    huge: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)  # images metadata.jsonl does not name
    uncaptioned: list[str] = field(default_factory=list)  # where others have a caption
    problems: list[str] = field(default_factory=list)  # why the folder as a whole is refused
    split: Counter[str] = field(default_factory=Counter)
    classes: int = 0
    boxes: Counter[str] = field(default_factory=Counter)  # of each category
    annotated: Counter[str] = field(default_factory=Counter)  # images with boxes, label maps, masks
    labels: Counter[int] = field(default_factory=Counter)  # label maps in which a value occurs
    misfits: list[str] = field(default_factory=list)  # label maps and masks of another size than their image, or damaged
    min_size: int = 1

    @property
    def mixed_channels(self) -> bool:
        """Whether training needs to be told a channel count."""
        return len({channels for channels, _ in self.kinds}) > 1

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; duplicates within one part and images without a caption or a line are only mentioned."""
        return self._wrong == 0

    @property
    def _wrong(self) -> int:
        found = (self.problems, self.corrupt, self.misfits, self.too_small, self.huge, self.straddling)
        return sum(len(items) for items in found) + self.mixed_channels

    def lines(self) -> list[str]:
        """The report as it is printed: what there is, what is worth knowing, what is wrong."""
        kinds = ", ".join(f"{n} of {channels} channels {depth}" for (channels, depth), n in self.kinds.most_common())
        lines = [f"{self.total} images: {kinds or 'none can be read'}"]
        lines.append(f"split: {self.split['train']} train, {self.split['held_out']} held out")
        lines += [f"{self.classes} classes"] if self.classes else []
        lines += self._annotations()
        lines += _listed("without a caption", self.uncaptioned)
        lines += _listed("not in metadata.jsonl (left out of training)", self.unlisted)
        lines += _listed("groups of identical images", [" = ".join(names) for names in self.duplicates])
        lines += _listed("groups of identical images in both train and held out", [" = ".join(names) for names in self.straddling])
        lines += _listed("corrupt (skipped in training)", self.corrupt)
        lines += _listed("label maps or masks that do not fit", self.misfits)
        lines += _listed(f"smaller than {self.min_size} px", self.too_small)
        lines += _listed(f"larger than {_HUGE / 1e6:g} megapixels (slow; make them smaller)", self.huge)
        lines += ["mixed channel counts: set channels=3 (or 1) to train on all of them"] if self.mixed_channels else []
        lines += self.problems
        lines.append("no problems found" if self.ok else f"{self._wrong} problem{'s' if self._wrong > 1 else ''} found")
        return lines

    def _annotations(self) -> list[str]:
        """A line for each kind that is there."""
        lines = []
        if self.annotated["boxes"]:
            most = ", ".join(f"{name} {count}" for name, count in self.boxes.most_common(5))
            lines.append(f"boxes: {self.boxes.total()} of {len(self.boxes)} categories in {self.annotated['boxes']} images: {most}")
        if self.annotated["label maps"]:
            lines.append(f"label maps: {self.annotated['label maps']}, with {len(self.labels)} different values up to {max(self.labels)}")
        if self.annotated["masks"]:
            lines.append(f"masks: {self.annotated['masks']}")
        return lines


def check(path: Path, min_size: int = 1) -> Iterator[Report]:
    """Decode every image of a folder and yield the growing report: before the first image, after each, and so at last the whole.

    ``min_size``: the shorter side in pixels below which an image is too small. Raises: ValueError if the folder is missing or empty.
    """
    listing = list_folder(path)
    report = _beginning(listing, min_size)
    twins: dict[bytes, list[str]] = defaultdict(list)
    yield report
    entries = {entry.name: entry for entry in listing.entries}
    for report.done, name in enumerate(sorted([*entries, *listing.unlisted]), start=1):
        try:
            image = read_image(path / name)
        except CorruptImage as error:
            report.corrupt.append(f"{name} cannot be read: {error.reason}")
        else:
            _measure(report, name, image)
            _annotated(report, path, entries.get(name), image, listing.categories)
            twins[_digest(image)].append(name)
        if report.done == report.total:
            _compare(report, list(twins.values()), listing)
        yield report


def _beginning(listing: Listing, min_size: int) -> Report:
    """What is known without opening an image."""
    silent = [entry.name for entry in listing.entries if not entry.text]
    return Report(
        total=len(listing.entries) + len(listing.unlisted),
        unlisted=listing.unlisted,
        uncaptioned=silent if len(silent) < len(listing.entries) else [],
        problems=listing.problems,
        split=Counter(entry.split for entry in listing.entries),
        classes=len(listing.classes),
        min_size=min_size,
    )


def _measure(report: Report, name: str, image: np.ndarray) -> None:
    height, width, channels = image.shape
    report.kinds[channels, str(image.dtype)] += 1
    if min(height, width) < report.min_size:
        report.too_small.append(f"{name} ({width} x {height})")
    if height * width > _HUGE:
        report.huge.append(f"{name} ({width} x {height})")


def _annotated(report: Report, path: Path, entry: Entry | None, image: np.ndarray, categories: tuple[str, ...]) -> None:
    """Count an image's annotations, and compare the sizes of its maps with its own."""
    if entry is None:
        return
    if entry.boxes is not None:
        report.annotated["boxes"] += 1
        report.boxes.update(categories[int(box["label"])] for box in entry.boxes)
    for kind, name in (("label maps", entry.segmentation), ("masks", entry.mask)):
        if name is None:
            continue
        try:
            values = read_labels(path / name)
        except CorruptImage as error:
            report.misfits.append(f"{name} cannot be read: {error.reason}")
            continue
        report.annotated[kind] += 1
        if values.shape != image.shape[:2]:
            sizes = " and ".join(f"{width} x {height}" for height, width in (values.shape, image.shape[:2]))
            report.misfits.append(f"{name} and {entry.name} have sizes {sizes}")
        elif kind == "label maps":
            report.labels.update(np.unique(values).tolist())


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(repr((image.shape, image.dtype)).encode() + image.tobytes(), digest_size=16).digest()


def _compare(report: Report, groups: list[list[str]], listing: Listing) -> None:
    """Identical images, once all have been seen."""
    split = {entry.name: entry.split for entry in listing.entries}
    report.duplicates = [names for names in groups if len(names) > 1]
    report.straddling = [names for names in report.duplicates if len({split[name] for name in names if name in split}) > 1]


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    rest = [f"  and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return [f"{len(names)} {what}:", *(f"  {name}" for name in names[:_SHOWN]), *rest]
