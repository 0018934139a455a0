"""What a run folder holds for a report: its recipe, its figures as series over the steps, its pictures; what cannot be read is named."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentworks.checkpoints.native import is_model_folder, weights_hash
from latentworks.recipe import Recipe, read_recipe

__all__ = ["Points", "Run", "Series", "read_json", "read_run"]

Points = list[tuple[int, float]]
Series = dict[str, Points]
"""By name a figure's values with their steps, in order."""

LARGEST = 1e15
"""What is not smaller is no figure, and no count of steps."""

_HELD_OUT = "held_out/"


@dataclass(frozen=True)
class Run:
    """``trained`` and ``held_out``: figures logged in training, means since the line before, and on held-out images. ``grids``: files by
    step. ``marks``: what best.json and last.json say. ``notes``: what could not be read."""

    folder: Path
    recipe: Recipe
    trained: Series
    held_out: Series
    grids: list[tuple[int, Path]]
    marks: dict[str, dict[str, Any]]
    notes: list[str]

    @property
    def step(self) -> int:
        """The last step that anything is known of."""
        known = [points[-1][0] for series in (self.trained, self.held_out) for points in series.values()]
        return max([0, *known])

    def seconds(self) -> float:
        """Of training, from the logged speed of one process; saving and measuring are not in it."""
        images = self.recipe.train.batch * self.recipe.train.accumulate
        total, before = 0.0, 0
        for step, speed in self.trained.get("images_per_second", []):
            total += (step - before) * images / speed if speed > 0 else 0.0
            before = step
        return total

    def weights(self) -> list[str]:
        """The hashes of its weights, the last and the best ones."""
        return [weights_hash(folder) for folder in (self.folder / "model", self.folder / "best") if is_model_folder(folder)]

    def attribution(self, data: Path | None) -> str:
        """Whose images it learned from, as its model card quotes it, or the folder ``data`` says; "" where that is not known."""
        cards = (self.folder / name / "README.md" for name in ("model", "best"))
        quoted = [_text(path).partition("## Training images")[2].partition("\n## ")[0].strip() for path in cards]
        return next(filter(None, [*quoted, _text(data / "ATTRIBUTION.txt").strip() if data else ""]), "")


def read_run(folder: Path) -> Run:
    """Read what is there. Raises: ValueError in one line for a folder that is no run; a damaged line or mark is a note instead."""
    if not folder.is_dir():
        raise ValueError(f"RUN {folder}: no such folder; give one that `lw train` wrote, e.g. runs/openmoji-64")
    if not (folder / "recipe.json").is_file():
        raise ValueError(f"RUN {folder} holds no recipe.json, so it is no run: give a folder that `lw train` wrote, e.g. runs/openmoji-64")
    if is_model_folder(folder):
        raise ValueError(f"RUN {folder} is a model folder, which has no history: give the run folder that it was trained in")
    recipe = read_recipe(folder / "recipe.json")
    rows, notes = _rows(folder / "metrics.jsonl")
    trained, held_out = _series(rows)
    marks = {}
    for name in ("best", "last"):
        if (folder / f"{name}.json").is_file():
            try:
                marks[name] = read_json(folder / f"{name}.json")
            except ValueError as error:
                notes.append(str(error))
    found = ((re.fullmatch(r"(\d+)\.png", path.name), path) for path in (folder / "grids").glob("*.png"))
    grids = sorted((int(match[1]), path) for match, path in found if match)
    return Run(folder, recipe, trained, held_out, grids, marks, notes)


def _text(path: Path) -> str:
    """What a file says, "" if there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: ValueError naming the file, which a reader knows by its name alone."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged, no JSON ({' '.join(str(error).split())}): write it anew") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object but {type(values).__name__}: write it anew")
    return values


def _rows(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The lines of metrics.jsonl by step, and a note on those that cannot be read."""
    rows, bad = list[dict[str, float]](), list[int]()
    for number, line in enumerate(_text(path).split("\n"), start=1):
        try:
            values = json.loads(line)
            row = {key: float(value) for key, value in values.items() if key.isprintable()}
            if not 0 <= row["step"] < LARGEST:
                raise ValueError(row["step"])
            rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            bad += [number] if line.strip() else []
    rows.sort(key=lambda row: row["step"])
    lines = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first is {bad[0]}," if bad else ""
    return rows, [f"{lines} of metrics.jsonl cannot be read and {'is' if len(bad) == 1 else 'are'} left out"] if bad else []


def _series(rows: Sequence[Mapping[str, float]]) -> tuple[Series, Series]:
    """Figures of training and of held-out images, but for those that are not finite."""
    trained: Series = {}
    held_out: Series = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and abs(value) < LARGEST:
                series, name = (held_out, key.removeprefix(_HELD_OUT)) if key.startswith(_HELD_OUT) else (trained, key)
                series.setdefault(name, []).append((int(row["step"]), value))
    return trained, held_out
