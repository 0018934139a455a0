"""The evaluation card: a model's figures with all that is needed to repeat them, as JSON for programs and as Markdown for people."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, JsonValue, field_serializer

from latentworks.config import Config, read_mapping
from latentworks.metrics.measurement import Measurement
from latentworks.metrics.reference import Fingerprint
from latentworks.staging import check_place, staged_file

__all__ = [
    "FORMAT",
    "Card",
    "DataFacts",
    "DrawingFacts",
    "Fact",
    "ImageFacts",
    "MachineFacts",
    "ModelFacts",
    "NetworkFacts",
    "VersionFacts",
    "add_audit",
    "check_name",
    "facts",
    "read_card",
    "write_card",
]

FORMAT: Literal["latentworks-card/1"] = "latentworks-card/1"

TITLE = "# Evaluation of"
"""What a card's Markdown begins with."""


class ModelFacts(Config):
    """Which model; the hashes are sha256."""

    name: str = Field(title="model")
    kind: Literal["first_stage", "latent_diffusion"] = Field(title="kind of model")
    weights: str = Field(title="hash of the weights (model.safetensors)")
    settings: str = Field(title="hash of the model's settings (recipe.json) and vocabularies")


class DataFacts(Config):
    """Which images. ``reference``: what is compared with; ``floor``: real images that are measured like drawn ones."""

    folder: str = Field(title="folder")
    train: int = Field(ge=0, title="training images of use to the model")
    held_out: int = Field(ge=0, title="held-out images of use to the model")
    reference: Fingerprint
    floor: Fingerprint | None = None


class ImageFacts(Config):
    """How they are prepared for the model, and thus for measuring."""

    size: int = Field(ge=1, title="pixels of the shorter side")
    crop: int = Field(ge=1, title="pixels a side of the central square")
    resize: str = Field(title="resize filter of the images")
    channels: int = Field(ge=1, title="channels")


class DrawingFacts(Config):
    """How a latent diffusion model drew, its own settings filled in."""

    n: int = Field(ge=1, title="images drawn")
    conditions: tuple[str, ...] = Field(title="conditions")
    order: str = Field(title="choice of conditions")
    sampler: str = Field(title="sampler")
    steps: int = Field(ge=1, title="steps")
    eta: float | None = Field(title="eta")
    guidance: float = Field(title="guidance")
    seed: int = Field(title="seed (image i: seed + i)")


class NetworkFacts(Config):
    """The network that features are taken with."""

    name: str = Field(title="feature network")
    hash: str = Field(title="hash of its weights")
    dim: int = Field(ge=1, title="features")
    resize: str = Field(title="resize filter before the feature network")


class MachineFacts(Config):
    """What can change the last bits of a figure: it ran on this, so many images at once."""

    system: str = Field(title="system")
    cpu: str = Field(title="processor")
    cores: int | None = Field(title="cores")
    threads: int = Field(title="threads")
    device: str = Field(title="device")
    batch: int = Field(ge=1, title="images at once")


class VersionFacts(Config):
    """Of the software."""

    python: str = Field(title="Python")
    torch: str = Field(title="PyTorch")
    numpy: str = Field(title="NumPy")
    pillow: str = Field(title="Pillow")
    latentworks: str = Field(title="Latentworks")


class Card(Config):
    """All of one evaluation; no path of the machine, no date: a second evaluation gives the same file.

    ``drawing``: None for a first stage, which draws nothing. ``bootstrap``: resamples of the 95 % interval. ``audit``: see `add_audit`.
    """

    format: Literal["latentworks-card/1"] = FORMAT
    model: ModelFacts
    images: ImageFacts
    data: DataFacts
    drawing: DrawingFacts | None
    network: NetworkFacts
    bootstrap: int = Field(ge=0, title="bootstrap resamples of the 95 % interval")
    measurements: tuple[Measurement, ...] = ()
    notes: tuple[str, ...] = ()
    machine: MachineFacts
    versions: VersionFacts
    audit: dict[str, JsonValue] | None = None

    @field_serializer("measurements")
    def _finite(self, measurements: tuple[Measurement, ...]) -> list[dict[str, Any]]:
        """An infinite figure becomes "inf", as JSON has no such number."""
        rows = [asdict(measurement) for measurement in measurements]
        return [{**row, "value": row["value"] if math.isfinite(row["value"]) else str(row["value"])} for row in rows]

    def markdown(self) -> str:
        """For people: the figures first, then every fact, then how to repeat them."""
        lines = [f"{TITLE} {self.model.name}", "", *_table(self.measurements), ""]
        lines += [f"- {note}" for note in self.notes] + ([""] if self.notes else [])
        for section in dict.fromkeys(fact.section for fact in facts(self)):
            lines += [f"## {section.capitalize()}", ""]
            lines += [f"- {fact.title}: {fact.value}" for fact in facts(self) if fact.section == section] + [""]
        if self.audit is not None:
            lines += ["## Audit", "", *(f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in self.audit.items()), ""]
        how = "`lw evaluate MODEL --data DIR --card FILE`, with the JSON file beside this one, repeats this and says whether it agrees."
        return "\n".join([*lines, how]) + "\n"


class Fact(NamedTuple):
    """One circumstance of an evaluation: where it stands in the card, what it is called and its value in words."""

    path: str
    title: str
    value: str

    @property
    def section(self) -> str:
        """The part of the card, with a part of that: "data, reference"."""
        return ", ".join(self.path.split(".")[:-1]) or self.path


def facts(card: Card) -> list[Fact]:
    """Every circumstance, in the card's order; not the figures."""
    return list(_facts(card, ""))


def _facts(config: Config, path: str) -> Iterator[Fact]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _facts(value, f"{path}{name}.")
        elif field.title is not None:
            yield Fact(path + name, field.title, _shown(value))


def _shown(value: Any) -> str:
    """A value in words, on one line."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(one)}" for key, one in value.items())
    return " ".join((f"{value:g}" if isinstance(value, float) else str(value)).split())


def _table(measurements: tuple[Measurement, ...]) -> list[str]:
    """The figures as a Markdown table."""
    lines = ["| figure | value | 95 % interval | images | compared with | settings |", "| :-- | --: | --: | --: | :-- | :-- |"]
    for one in measurements:
        between = f"{one.interval[0]:.4g} to {one.interval[1]:.4g}" if one.interval else ""
        value = f"{one.value:.4g} {one.unit}".rstrip()
        cells = [one.name, value, between, str(one.n), _shown(one.reference), one.settings or ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    few = [one for one in measurements if one.few]
    return [*lines, "", few[0].few] if few else lines


def read_card(path: Path) -> Card:
    """A card from its JSON file. Raises: ValueError in one line: no such file, damaged, no card, or of another format."""
    values = read_mapping(path)
    found = values.get("format")
    if found is None:
        raise ValueError(f"{path} is no evaluation card: it has no format; `lw evaluate MODEL --data DIR --json FILE` writes one")
    if found != FORMAT:
        raise ValueError(f"{path}: format {found!r} is not {FORMAT!r}, which this version reads: use the version that wrote it")
    try:
        return Card.parse(values)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def check_name(path: Path, repeated: Path | None = None) -> None:
    """Raises: ValueError if a card cannot be written to ``path``, or would take the place of the one it repeats."""
    page = path.with_suffix(".md")
    if path.suffix != ".json":
        raise ValueError(f"{path}: a card's name ends in .json, its Markdown beside it in .md: name it {path.with_suffix('.json').name}")
    if path.is_dir() or page.is_dir():
        raise ValueError(f"{path}: there is a folder in the place of the card or its Markdown: give another name")
    if repeated is not None and path.resolve() == repeated.resolve():
        raise ValueError(f"{path} is the card that is repeated: give the new one another name")
    if page.is_file() and not page.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        raise ValueError(f"{page} is no card, whose Markdown would take its place: give the card another name")
    check_place(path)


def write_card(card: Card, path: Path) -> None:
    """Write a card to ``path`` (.json) and its Markdown beside it (.md). Each is whole at any time. Raises: ValueError."""
    check_name(path)
    with staged_file(path) as file, staged_file(path.with_suffix(".md")) as page:
        card.save(file)
        page.write_text(card.markdown(), encoding="utf-8")


def add_audit(path: Path, summary: dict[str, Any]) -> None:
    """Put the summary of an audit (plain values) into a card and its Markdown, in place of an older one. Raises: ValueError."""
    write_card(read_card(path).replace(audit=summary), path)
