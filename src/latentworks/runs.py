"""The driver of training: turns the steps of `train()` into logs, grids, held-out figures, saves and stops; one run is one folder.

RUN/recipe.json       the complete recipe          RUN/checkpoints/   training states: the newest and the one before
RUN/metrics.jsonl     every logged figure          RUN/tensorboard/   the same, where tensorboard is installed
RUN/grids/            pictures at intervals        RUN/model/, best/  model folders of the averaged weights: last, best on held-out images
"""

import json
import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from torch import Tensor

from latentworks.card import model_card
from latentworks.checkpoints.native import load_folder, load_newest_state, save_folder, save_state
from latentworks.data.dataset import ImageDataset
from latentworks.data.latents import latent_statistics, weights_digest
from latentworks.first_stage.base import FirstStage
from latentworks.grids import reconstruction_grid, sample_grid, save_sheet
from latentworks.model import LatentDiffusion
from latentworks.preparation import Prepared, RunRequest, prepare
from latentworks.recipe import DiffusionRecipe, Recipe, read_recipe
from latentworks.staging import staged_file
from latentworks.train import Stepped, make_accelerator, train
from latentworks.types import Batch

__all__ = ["Message", "Progress", "RunRequest", "train_run"]

HELD_OUT_BATCH = 32


@dataclass(frozen=True)
class Message:
    """Something the user should read."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Figures since the last one of these: means over the steps, speed, and the time left."""

    step: int
    steps: int
    figures: dict[str, float]
    images_per_second: float
    seconds_left: float

    def line(self) -> str:
        """One line for a terminal."""
        shown = " ".join(f"{key} {value:.4g}" for key, value in self.figures.items())
        left = f"{self.seconds_left / 60:.0f} min" if self.seconds_left >= 60 else f"{self.seconds_left:.0f} s"
        return f"step {self.step}/{self.steps}  {shown}  {self.images_per_second:.0f} images/s  {left} left"


def train_run(request: RunRequest) -> Iterator[Message | Progress]:
    """Train, or go on with the run in ``request.out``; ends when the steps are done, at ``request.seconds``, or on Ctrl-C or SIGTERM.

    Whatever ends it, the state is saved first. Raises: ValueError for a request that cannot work, before anything is written;
    FloatingPointError when training diverges (the last saved state stays).
    """
    began = time.monotonic()
    prepared = prepare(request)
    yield from (Message(note) for note in prepared.notes)
    resumed = _resume(request, prepared)
    yield from (Message(line) for line in resumed.lines)
    accelerator = make_accelerator(prepared.recipe.train, request.out if is_tensorboard_available() else None)
    run = _Run(request, prepared, accelerator, began, resumed.best)
    yield from run.fill()
    with stop_signals() as stopped, torch.random.fork_rng(devices=[]):
        torch.manual_seed(prepared.recipe.train.seed)
        steps = train(prepared.objective, run.data, prepared.recipe.train, accelerator=accelerator, resume=resumed.tensors)
        yield from run.drive(steps, stopped)


@dataclass(frozen=True)
class _Resumed:
    tensors: dict[str, Tensor] | None
    best: float
    lines: list[str]


def _resume(request: RunRequest, prepared: Prepared) -> _Resumed:
    """What is in the run folder already; a new folder gets its recipe. Raises: ValueError if it is the run of another model."""
    out, recipe = request.out, prepared.recipe
    facts = {"first_stage": weights_digest(prepared.latents.first_stage) if prepared.latents else "", "data": prepared.images.source.fingerprint()}
    if not (out / "recipe.json").exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty and no run of ours: give another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write {out}: {error.strerror}; give another --out") from None
        with staged_file(out / "facts.json") as path:
            path.write_text(json.dumps(facts))
        with staged_file(out / "recipe.json") as path:
            recipe.save(path)
        return _Resumed(None, math.inf, [])
    _same_run(out, read_recipe(out / "recipe.json"), recipe)
    then = json.loads((out / "facts.json").read_text())
    if then["first_stage"] != facts["first_stage"]:
        raise ValueError(f"{out} was trained with another first stage: name that one, or give another --out")
    lines = ["the data changed since this run began: its order is not what it was"] if then["data"] != facts["data"] else []
    tensors, complaints = load_newest_state(out)
    lines += [*complaints, f"going on from step {int(tensors['step'])}" if tensors else "nothing was saved yet: starting anew"]
    best = json.loads((out / "best.json").read_text())["figure"] if (out / "best.json").exists() and tensors else math.inf
    return _Resumed(tensors, best, lines)


def _same_run(out: Path, old: Recipe, new: Recipe) -> None:
    """Everything but the number of steps and the intervals must be as it was."""
    before, now = (_flat({**r.model_dump(mode="json"), "intervals": None}) for r in (old, new))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and key != "train.steps"]
    if changed:
        what = ", ".join(f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:5])
        raise ValueError(f"{out} holds a run of another model ({what}): give another --out, or the settings it was begun with")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}.{name}" if prefix else name).items()}


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Within, Ctrl-C and SIGTERM only fill the list, so that a step in progress ends whole; a second Ctrl-C interrupts as usual."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's matter
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """A run under way: what is logged, drawn and saved, and when."""

    def __init__(self, request: RunRequest, prepared: Prepared, accelerator: Accelerator, began: float, best: float) -> None:
        self.request, self.prepared, self.accelerator, self.began, self.best = request, prepared, accelerator, began, best
        self.recipe, self.out = prepared.recipe, request.out
        self.data = prepared.latents or prepared.images
        self.held_out: list[Batch] = []
        if accelerator.log_with:
            accelerator.init_trackers("tensorboard")

    def fill(self) -> Iterator[Message]:
        """Read the images or fill the latent cache, and the held-out batches."""
        images = self.prepared.images
        if self.prepared.latents is None:
            for _ in images.load():
                pass
        elif not self.prepared.latents.ready:
            yield Message(f"encoding {len(images)} images into the latent cache {self.request.cache}")
            for _ in self.prepared.latents.fill():
                pass
        if self.prepared.held_out is not None:
            limit = self.recipe.intervals.held_out
            self.held_out = [batch for batch in self.prepared.held_out.batches(HELD_OUT_BATCH)][: math.ceil(limit / HELD_OUT_BATCH)]
        if self.data.skipped:
            yield Message(f"{len(self.data.skipped)} files cannot be read and are skipped: {', '.join(self.data.skipped[:10])}")

    def drive(self, steps: Iterator[Stepped], stopped: list[int]) -> Iterator[Message | Progress]:
        """Act on every step; at the end save, and write the model folders."""
        every, last = self.recipe.intervals, None
        sums: dict[str, Tensor] = {}
        count, since = 0, time.monotonic()
        for last in steps:
            count += 1
            for key, value in last.log.items():
                sums[key] = sums.get(key, torch.zeros_like(value)) + value
            if last.step % every.log == 0 or last.step == self.recipe.train.steps:
                yield self._progress(last.step, {key: float(value) / count for key, value in sums.items()}, count, time.monotonic() - since)
                sums, count, since = {}, 0, time.monotonic()
            ending = bool(stopped) or self._out_of_time() or last.step == self.recipe.train.steps
            if last.step % every.checkpoint == 0 and not ending:
                save_state(self.out, last.step, last.state.tensors())
            if last.step % every.evaluate == 0 and not ending:
                paused = time.monotonic()
                yield self._evaluate(last)
                since += time.monotonic() - paused
            if ending:
                break
        if last is None:
            yield Message(f"{self.out} is complete: {self.recipe.train.steps} steps are done")
            return
        save_state(self.out, last.step, last.state.tensors())
        yield Message(f"state saved at step {last.step}")
        yield self._evaluate(last)
        yield from self._finish(last)

    def _out_of_time(self) -> bool:
        return self.request.seconds is not None and time.monotonic() - self.began > self.request.seconds

    def _progress(self, step: int, figures: dict[str, float], count: int, seconds: float) -> Progress:
        train = self.recipe.train
        speed = count * train.batch * train.accumulate * self.accelerator.num_processes / seconds
        left = (train.steps - step) * seconds / count
        if self.request.seconds is not None:
            left = min(left, self.request.seconds - (time.monotonic() - self.began))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._log(step, {**figures, "images_per_second": speed, "peak_memory_gib": peak})
        return Progress(step, train.steps, figures, speed, max(left, 0.0))

    def _log(self, step: int, figures: dict[str, float]) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self.accelerator.log_with:
            self.accelerator.log(figures, step=step)

    def _evaluate(self, stepped: Stepped) -> Message:
        """Held-out figures and a grid with the averaged weights; the best ones are kept."""
        with stepped.state.averaged():
            figures = {}
            if self.held_out:
                with self.accelerator.autocast():
                    figures = self.prepared.objective.held_out(self.held_out)
                self._log(stepped.step, {f"held_out/{key}": value for key, value in figures.items()})
            with self.accelerator.autocast():
                self._draw(stepped.step)
            figure = figures.get(self.prepared.objective.best, math.inf)
            better = figure < self.best
            if better:
                self.best = figure
                self._save_model("best", stepped.step, figures)
                with staged_file(self.out / "best.json") as path:
                    path.write_text(json.dumps({"step": stepped.step, "figure": figure}))
        shown = " ".join(f"{key} {value:.4g}" for key, value in figures.items() if not key.startswith("loss_t"))
        return Message(f"held out at step {stepped.step}: {shown}{' (best so far)' if better else ''}")

    def _draw(self, step: int) -> None:
        model, batch = self.prepared.model, self.held_out[0] if self.held_out else self.prepared.images.batch(range(HELD_OUT_BATCH))
        if isinstance(model, LatentDiffusion):
            assert isinstance(self.recipe, DiffusionRecipe)
            grid = sample_grid(model, self.recipe, batch)
        else:
            grid = reconstruction_grid(model, batch)
        save_sheet(self.out / "grids" / f"{step:07d}.png", grid)

    def _save_model(self, name: str, step: int, figures: dict[str, float]) -> None:
        card = model_card(self.recipe, step, figures, self.request.data)
        save_folder(self.out / name, self.prepared.model, self.recipe, card)

    def _finish(self, stepped: Stepped) -> Iterator[Message]:
        """The model folder of the last averaged weights; first stages get their latent statistics, the best one its own."""
        with stepped.state.averaged():
            if isinstance(self.prepared.model, FirstStage):
                yield Message("computing latent statistics over the training images")
                _set_statistics(self.prepared.model, self.prepared)
            self._save_model("model", stepped.step, {})
        if isinstance(self.prepared.model, FirstStage) and (self.out / "best").exists():
            best, recipe = load_folder(self.out / "best")
            assert isinstance(best, FirstStage)
            _set_statistics(best, self.prepared)
            save_folder(self.out / "best", best, recipe, (self.out / "best" / "README.md").read_text())
        done = stepped.step >= self.recipe.train.steps
        yield Message(f"model written to {self.out / 'model'}" + ("" if done else "; the same command goes on from here"))


def _set_statistics(first_stage: FirstStage, prepared: Prepared) -> None:
    images = ImageDataset(prepared.images.source, prepared.recipe.data.whole())
    first_stage.set_statistics(*latent_statistics(first_stage, images.batches(64)))
