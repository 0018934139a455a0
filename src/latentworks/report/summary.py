"""What a report says of a run in words: what was trained, on what, how long, and how good it is; and every setting."""

import datetime
from collections.abc import Iterator
from typing import Any

from latentworks.checkpoints.native import is_model_folder
from latentworks.checkpoints.tensors import read_tensors
from latentworks.recipe import NOUNS
from latentworks.report.blocks import Block, Facts, Table
from latentworks.report.run import Points, Run

__all__ = ["settings", "summary"]


def summary(run: Run, notes: list[str]) -> list[Block]:
    """What was trained, on what, how long, and how good it is at its best; damaged weights are added to ``notes``."""
    recipe, config, data = run.recipe, run.recipe.train, run.recipe.data
    share = f" ({run.step / config.steps:.0%})" if run.step < config.steps else ""
    cropped = f", trained on squares of {data.out_size} px" if data.out_size != data.size else ""
    facts = [
        ("model", f"{recipe.name}, a {NOUNS[recipe.kind]}"),
        ("size", _size(run, notes)),
        ("steps", f"{run.step:,} of {config.steps:,}{share}"),
        ("images a step", f"{config.batch}{f' x {config.accumulate}' if config.accumulate > 1 else ''} in each process"),
        ("data", f"{data.size} px, {data.channels or 'its own'} channels{cropped}"),
        ("time of training", _duration(run.seconds()) + ", by the logged speed of one process" if run.seconds() else ""),
        ("throughput", f"{_median(run.trained['images_per_second']):.4g} images/s (median)" if "images_per_second" in run.trained else ""),
        ("peak memory", f"{run.trained['peak_memory_gib'][-1][1]:.2f} GiB" if "peak_memory_gib" in run.trained else ""),
        ("best", _best(run)),
        ("last held-out figures", _last(run)),
        ("last line of figures", _written(run)),
    ]
    return [Facts([(name, value) for name, value in facts if value])]


def settings(run: Run) -> list[Block]:
    """The recipe, value by value."""
    return [Table("recipe.json", ("setting", "value"), list(_flat(run.recipe.model_dump(mode="json"))), folded=True)]


def _size(run: Run, notes: list[str]) -> str:
    """Numbers in the model's file, by part; "" where there is none yet, or it is damaged, which is noted."""
    for folder in (run.folder / "model", run.folder / "best"):
        if is_model_folder(folder):
            sizes: dict[str, int] = {}
            try:
                tensors = read_tensors(folder / "model.safetensors")
            except ValueError as error:
                if not any(str(error) in note for note in notes):  # what was to be reconstructed may have said so
                    notes.append(str(error))
                return ""
            for name, tensor in tensors.items():
                part = name.partition(".")[0].replace("_", " ")
                sizes[part] = sizes.get(part, 0) + tensor.numel()
            parts = ", ".join(f"{part} {_millions(size)}" for part, size in sizes.items() if size >= 1000)
            return f"{_millions(sum(sizes.values()))} numbers ({parts})"
    return ""


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _best(run: Run) -> str:
    """The step whose averaged weights did best on held-out images, with all figures of that step."""
    mark = run.marks.get("best", {})
    step = mark.get("step")
    if not isinstance(step, int):
        return ""
    figures = _at(run, step)
    return f"step {step:,}" + (f": {figures}" if figures else f", figure {mark.get('figure')}")


def _last(run: Run) -> str:
    steps = [points[-1][0] for points in run.held_out.values()]
    return f"step {max(steps):,}: {_at(run, max(steps))}" if steps else ""


def _at(run: Run, step: int) -> str:
    """Held-out figures of one step, but for those of buckets."""
    found = ((name, dict(points).get(step)) for name, points in run.held_out.items() if "_t" not in name)
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found if value is not None)


def _written(run: Run) -> str:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return ""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("written on %Y-%m-%d at %H:%M UTC")


def _median(points: Points) -> float:
    return sorted(value for _, value in points)[len(points) // 2]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes >= 2 else f"{seconds:.1f} s"


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}".lstrip("."))
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        for i, value in enumerate(values):
            yield from _flat(value, f"{prefix}.{i}")
    else:
        yield prefix, "none" if values is None else str(values)
