"""What a run folder says of its run: begun anew, or gone on with after checking that it is the same one; its lasting facts and figures."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from latentworks.checkpoints.native import load_newest_state
from latentworks.conditioners import Conditioner
from latentworks.data.latents import weights_digest
from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.preparation import Prepared
from latentworks.random import seed_of
from latentworks.recipe import read_recipe
from latentworks.staging import staged_file

__all__ = ["Found", "append_figures", "open_run", "read_mark", "reserved", "write_mark"]

_LOCK = ".lock"


@dataclass(frozen=True)
class Found:
    """The newest saved state, if any; the best held-out figure so far; and lines for the user."""

    state: dict[str, Tensor] | None
    best: float
    lines: list[str]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state["step"]) if self.state else 0


@contextmanager
def reserved(out: Path) -> Iterator[None]:
    """Within, no other training may use the run folder; the lock goes with the process. Raises: ValueError if one does already."""
    if out.exists() and not (out.is_dir() and ((out / "recipe.json").exists() or not any(out.iterdir()))):
        yield  # not ours: `open_run` says so
        return
    lock = FileLock(out / _LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{out} is being trained by another process: let it end, or give another --out") from None
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror}; give another --out") from None
    try:
        yield
    finally:
        lock.release()


def open_run(out: Path, prepared: Prepared) -> Found:
    """Begin a run in a folder that is new or empty, or find where the one in it stands. Raises: ValueError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give another --out")
    if not (out / "recipe.json").exists():
        if out.exists() and any(item.name != _LOCK for item in out.iterdir()):
            raise ValueError(f"{out} is not empty and no run of ours: give another --out")
        write_mark(out / "facts.json", _facts(prepared))
        _save_recipe(out, prepared)
        return Found(None, math.inf, [])
    lines = _same_run(out, prepared)
    _save_recipe(out, prepared)  # of a run that goes on, steps and what does not bind it may be others
    state, complaints = load_newest_state(out)
    if state is None:
        return Found(None, math.inf, [*lines, *complaints, "no saved state: starting anew"])
    step = int(state["step"])
    _forget_after(out / "metrics.jsonl", step)
    best = read_mark(out / "best.json").get("figure", math.inf)
    return Found(state, best, [*lines, *complaints, f"going on from step {step}"])


def _save_recipe(out: Path, prepared: Prepared) -> None:
    with staged_file(out / "recipe.json") as path:
        prepared.recipe.save(path)


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What a run depends on beside its recipe."""
    model = prepared.model
    conditioners = list(model.conditioners) if isinstance(model, LatentDiffusion) else []
    assets = [sorted(c.assets().items()) for c in conditioners if isinstance(c, Conditioner)]
    return {
        "first_stage": "" if isinstance(model, FirstStage) else weights_digest(model.first_stage),
        "vocabulary": seed_of(*map(repr, assets)) if assets else 0,
        "data": prepared.images.source.fingerprint(),
    }


def _same_run(out: Path, prepared: Prepared) -> list[str]:
    """Lines on what changed without harm. Raises: ValueError when the folder's run is another one."""
    recipe, facts, before = prepared.recipe, _facts(prepared), read_mark(out / "facts.json")
    free = {"intervals": None, "sampling": None}
    old, new = (_flat({**r.model_dump(mode="json"), **free}) for r in (read_recipe(out / "recipe.json"), recipe))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if other := [key for key in changed if key != "train.steps"]:
        what = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in other[:5])
        raise ValueError(f"{out} holds a run of another model ({what}): give another --out, or the settings it was begun with")
    if before.get("first_stage") != facts["first_stage"]:
        raise ValueError(f"{out} was trained with another first stage: name that one, or give another --out")
    if before.get("vocabulary", facts["vocabulary"]) != facts["vocabulary"]:
        raise ValueError(f"{out} has another vocabulary, as the captions changed: put them back, or begin another --out with --from {out}")
    lines = ["the data changed since this run began: its order is not what it was"] if before.get("data") != facts["data"] else []
    if changed:
        lines.append(f"train.steps {old['train.steps']} -> {new['train.steps']}: what depends on it changes from here on")
    return lines


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}.{name}" if prefix else name).items()}


def write_mark(path: Path, values: dict[str, Any]) -> None:
    """A small JSON file, whole or not at all. Raises: ValueError when it cannot be written."""
    with staged_file(path) as temporary:
        temporary.write_text(json.dumps(values) + "\n")


def read_mark(path: Path) -> dict[str, Any]:
    """What `write_mark` wrote; empty if there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def append_figures(path: Path, figures: dict[str, float]) -> None:
    """One more line of metrics.jsonl. Raises: ValueError when it cannot be written."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(figures) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; the last saved state stays") from None


def _forget_after(path: Path, step: int) -> None:
    """Leave out the lines of steps that will be done again, and one that a crash cut short."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _step(line) <= step]
    if kept != lines:
        with staged_file(path) as temporary:
            temporary.write_text("".join(kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
