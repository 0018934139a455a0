"""How the command line shows progress and durations; nothing else."""

import re
from collections.abc import Iterable, Iterator

import typer

__all__ = ["parse_duration", "track"]

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str | None) -> float | None:
    """ "90s", "110m", "1.5h", "1h30m" in seconds. Raises: ValueError."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"--for {text!r}: write a time such as 90s, 110m or 1.5h")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def track(steps: Iterable[tuple[int, int]], what: str) -> Iterator[tuple[int, int]]:
    """Show (done, total) pairs as a progress bar and hand them on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=not typer.get_text_stream("stderr").isatty()) as progress:
        task = progress.add_task(what, total=None)
        for done, total in steps:
            progress.update(task, completed=done, total=total)
            yield done, total
