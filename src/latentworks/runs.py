"""The driver of training: turns the steps of `train()` into logs, grids, held-out figures, saves and stops; one run is one folder.

RUN/recipe.json       the complete recipe          RUN/checkpoints/   training states: the newest and the one before
RUN/metrics.jsonl     every logged figure          RUN/tensorboard/   the same, where tensorboard is installed
RUN/grids/            pictures at intervals        RUN/model/, best/  model folders of the averaged weights: last, best on held-out images
Of several processes the first one writes, draws and speaks.
"""

import math
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from torch import Tensor

from latentworks.card import model_card
from latentworks.checkpoints.native import is_model_folder, load_folder, save_folder, save_state
from latentworks.data.dataset import ImageDataset
from latentworks.data.latents import latent_statistics, weights_digest
from latentworks.first_stage.base import FirstStage
from latentworks.grids import grid, save_sheet
from latentworks.objectives.base import mean_over_processes
from latentworks.preparation import Prepared, RunRequest, prepare
from latentworks.recipe import FirstStageRecipe
from latentworks.run_folder import Found, append_figures, open_run, read_mark, reserved, write_mark
from latentworks.train import State, Stepped, make_accelerator, to_device, train
from latentworks.types import Batch

__all__ = ["Message", "Progress", "RunRequest", "train_run"]

HELD_OUT_BATCH = 32
MEASURED = 2048  # images from which a first stage's latent statistics are taken


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
    accelerator = make_accelerator(prepared.recipe.train, request.out if is_tensorboard_available() else None)
    try:
        with reserved(request.out) if accelerator.is_main_process else nullcontext():
            with accelerator.main_process_first():
                found = open_run(request.out, prepared)
            events = _Run(request, prepared, accelerator, began, found).events()
            yield from (event for event in events if accelerator.is_main_process)
            accelerator.wait_for_everyone()  # what is in flight when Python ends aborts the process
    finally:
        accelerator.end_training()


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

    def __init__(self, request: RunRequest, prepared: Prepared, accelerator: Accelerator, began: float, found: Found) -> None:
        self.request, self.prepared, self.accelerator, self.began, self.found = request, prepared, accelerator, began, found
        self.recipe, self.out, self.best = prepared.recipe, request.out, found.best
        self.data = prepared.latents or prepared.images
        self.held_out: list[Batch] = []

    def events(self) -> Iterator[Message | Progress]:
        """The whole of it."""
        yield from map(Message, (*self.prepared.notes, *self.found.lines))
        config, state = self.recipe.train, self.found.state
        done = self.found.step >= config.steps
        if done and is_model_folder(self.out / "model") and read_mark(self.out / "last.json").get("step") == self.found.step:
            yield Message(f"{self.out} is complete: {self.found.step} steps are done")
            return
        if self.accelerator.log_with:
            self.accelerator.init_trackers("tensorboard")
        with stop_signals() as stopped:
            self.prepared.model.to(self.accelerator.device)
            yield from self._fill(stopped)
            if stopped:
                yield Message("stopped before the first step: nothing to save")
            elif done:  # what ended it came before the model was written
                finished = State(self.prepared.objective, config)
                finished.restore(state or {})
                yield from self._end(Stepped(finished.step, {}, finished))
            else:
                steps = train(self.prepared.objective, self.data, config, accelerator=self.accelerator, resume=state)
                yield from self._drive(steps, stopped)

    def _fill(self, stopped: list[int]) -> Iterator[Message]:
        """Read the images or fill the latent cache, and the held-out batches."""
        images, latents, held_out = self.prepared.images, self.prepared.latents, self.prepared.held_out
        if latents is not None and not latents.ready:
            yield Message(f"encoding {len(images)} images into the latent cache {self.request.cache}")
        with self.accelerator.main_process_first():
            said = time.monotonic()
            for done, total in images.load() if latents is None else latents.fill():
                if stopped:
                    return
                if time.monotonic() - said > 10:
                    yield Message(f"{done} of {total} done")
                    said = time.monotonic()
        if held_out is not None:  # a mixed handful rather than the first ones, which are often of one kind
            chosen = held_out.indices_for(0, min(self.recipe.intervals.held_out, len(held_out)))
            for start in range(0, len(chosen), HELD_OUT_BATCH):
                self.held_out.append(to_device(held_out.batch(chosen[start : start + HELD_OUT_BATCH]), self.accelerator.device))
        skipped = [*self.data.skipped, *(held_out.skipped if held_out is not None else ())]
        if skipped:
            more = ", ..." if len(skipped) > 10 else ""
            yield Message(f"{len(skipped)} of the files cannot be read and are skipped: {', '.join(skipped[:10])}{more}")

    def _drive(self, steps: Iterator[Stepped], stopped: list[int]) -> Iterator[Message | Progress]:
        """Act on every step; at the end save, and write the model folders."""
        every, main = self.recipe.intervals, self.accelerator.is_main_process
        figures: defaultdict[str, list[Tensor]] = defaultdict(list)
        shown, since = self.found.step, time.monotonic()
        for last in steps:
            for key, value in last.log.items():
                figures[key].append(value)
            if last.step % every.log == 0 or last.step == self.recipe.train.steps:
                means = mean_over_processes(torch.stack([torch.stack(values).float().mean() for values in figures.values()])).tolist()
                shared = dict(zip(figures, means, strict=True))
                yield self._progress(last.step, shared, last.step - shown, time.monotonic() - since)
                figures.clear()
                shown, since = last.step, time.monotonic()
            if last.step == self.recipe.train.steps or self._agreed(bool(stopped) or self._out_of_time()):
                break
            paused = time.monotonic()
            if last.step % every.checkpoint == 0 and main:
                save_state(self.out, last.step, last.state.tensors())
            if last.step % every.evaluate == 0 and main:
                yield self._evaluate(last)
            since += time.monotonic() - paused
        if main:
            save_state(self.out, last.step, last.state.tensors())
            yield Message(f"state saved at step {last.step}")
            yield from self._end(last)

    def _out_of_time(self) -> bool:
        return self.request.seconds is not None and time.monotonic() - self.began > self.request.seconds

    def _agreed(self, here: bool) -> bool:
        """Whether any process says so, as all must stop after the same step."""
        if self.accelerator.num_processes == 1:
            return here
        said = torch.tensor(float(here), device=self.accelerator.device)
        return bool(mean_over_processes(said) > 0)

    def _progress(self, step: int, figures: dict[str, float], count: int, seconds: float) -> Progress:
        train = self.recipe.train
        speed = count * train.batch * train.accumulate * self.accelerator.num_processes / seconds
        left = (train.steps - step) * seconds / count
        if self.request.seconds is not None:
            left = min(left, self.request.seconds - (time.monotonic() - self.began))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        self._log(step, {**figures, "images_per_second": speed, "peak_memory_gib": peak})
        return Progress(step, train.steps, figures, speed, max(left, 0.0))

    def _log(self, step: int, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            append_figures(self.out / "metrics.jsonl", {"step": step, **figures})
        if self.accelerator.log_with:
            self.accelerator.log(figures, step=step)

    def _evaluate(self, stepped: Stepped) -> Message:
        """Held-out figures and a grid with the averaged weights; the best ones are kept."""
        figures: dict[str, float] = {}
        with stepped.state.averaged():
            with self.accelerator.autocast():
                if self.held_out:
                    figures = self.prepared.objective.held_out(self.held_out)
                    self._log(stepped.step, {f"held_out/{key}": value for key, value in figures.items()})
                self._draw(stepped.step)
            figure = figures.get(self.prepared.objective.best, math.inf)
            better = figure < self.best
            if better:
                self.best = figure
                self._save_model("best", stepped.step, figures)
                write_mark(self.out / "best.json", {"step": stepped.step, "figure": figure})
        shown = " ".join(f"{key} {value:.4g}" for key, value in figures.items() if "_t" not in key)
        return Message(f"held out at step {stepped.step}: {shown or 'nothing'}{' (best so far)' if better else ''}")

    def _draw(self, step: int) -> None:
        images = self.prepared.images
        batch = self.held_out[0] if self.held_out else images.batch(range(min(HELD_OUT_BATCH, len(images))))
        picture = grid(self.prepared.model, self.recipe, batch)
        if picture is not None:
            save_sheet(self.out / "grids" / f"{step:07d}.png", picture)

    def _save_model(self, name: str, step: int, figures: dict[str, float]) -> None:
        card = model_card(self.recipe, step, figures, self.request.data)
        save_folder(self.out / name, self.prepared.model, self.recipe, card)

    def _end(self, stepped: Stepped) -> Iterator[Message]:
        """The model folder of the last averaged weights; first stages get their latent statistics, the best one its own."""
        yield self._evaluate(stepped)
        with stepped.state.averaged():
            first_stage = self._unmeasured()
            if first_stage is not None:
                yield Message("computing latent statistics")
                self._set_statistics(first_stage)
            self._save_model("model", stepped.step, {})
        if first_stage is not None and is_model_folder(self.out / "best"):
            best, recipe = load_folder(self.out / "best")
            assert isinstance(best, FirstStage)
            if weights_digest(best) == weights_digest(first_stage):
                best.set_statistics(first_stage.mean, first_stage.std)
            else:
                self._set_statistics(best.to(self.accelerator.device))
            save_folder(self.out / "best", best, recipe, (self.out / "best" / "README.md").read_text(encoding="utf-8"))
        write_mark(self.out / "last.json", {"step": stepped.step})
        done = stepped.step >= self.recipe.train.steps
        yield Message(f"model written to {self.out / 'model'}" + ("" if done else "; the same command goes on from here"))

    def _unmeasured(self) -> FirstStage | None:
        """The first stage whose latents are this run's own, so that their statistics have to be taken."""
        kept = isinstance(self.recipe, FirstStageRecipe) and self.recipe.objective.decoder_only
        return self.prepared.model if isinstance(self.prepared.model, FirstStage) and not kept else None

    def _set_statistics(self, first_stage: FirstStage) -> None:
        images = ImageDataset(self.prepared.images.source, self.recipe.data.whole(), budget=0)
        first_stage.set_statistics(*latent_statistics(first_stage, images.batches(64, most=MEASURED)))
