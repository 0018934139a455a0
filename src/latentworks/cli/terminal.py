"""How the command line shows progress and durations; nothing else."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["parse_duration", "progress_bar", "track"]

_UNITS = {"s": 1, "m": 60, "h": 3600}

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


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
    with progress_bar() as show:
        for done, total in steps:
            show(what, done, total)
            yield done, total


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is going on, to be called with (what, done, total); into a file or a pipe a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, said = Console(stderr=True), time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            nonlocal said
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)
            if not console.is_terminal and time.monotonic() - said >= EVERY:
                said = time.monotonic()
                print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

        yield show
