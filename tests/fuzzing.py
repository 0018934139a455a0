"""What must hold for every file a reader is given: values or one line of ValueError, nothing run, memory within bounds."""

import codecs
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from latentworks.checkpoints.tensors import read_tensors
from latentworks.config import read_mapping

ALLOWED = 64 << 20
"""Bytes a reader may take beyond the file's size."""

RUNS = ("exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "pickle.", "shutil.", "urllib.", "webbrowser.", "code.", "pty.")
"""Audit events, by how they begin, that none of the readers may cause."""


def read_weights(path: Path) -> None:
    """Read and touch every tensor."""
    for value in read_tensors(path).values():
        value.clone()


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "torch": (".ckpt", read_weights),
    "safetensors": (".safetensors", read_weights),
    "yaml": (".yaml", read_mapping),
}
"""Name: the ending of its files, and the reader."""

_watched: list[tuple[Path, list[str]]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watched:
        return
    path, seen = _watched[0]
    opened = event == "open" and str(arguments[0]) != str(path)
    if opened or event == "import" or event.startswith(RUNS):
        seen.append(f"{event}{arguments!r}"[:200])


@contextmanager
def watched(path: Path) -> Iterator[list[str]]:
    """Gathers what is opened (but ``path``), imported or run meanwhile."""
    seen: list[str] = []
    _watched.append((path, seen))
    try:
        yield seen
    finally:
        _watched.clear()


for name in ("raw_unicode_escape", "unicode_escape", "latin-1", "ascii", "utf-8"):
    codecs.lookup(name)  # Python imports its own encodings at their first use
sys.addaudithook(_hook)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def check(target: str, path: Path) -> bool:
    """Whether a file is read, else it was refused. Raises: AssertionError when the reader breaks a promise; anything else is its bug."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = _memory("VmRSS")
    complaint = ""
    with watched(path) as seen:
        try:
            READERS[target][1](path)
        except ValueError as error:
            complaint = str(error) or "nothing"
    assert "\n" not in complaint, f"more than a line: {complaint!r}"
    assert not complaint or str(path) in complaint, f"the file is not named: {complaint!r}"
    assert not seen, f"while reading: {seen}"
    grown = _memory("VmHWM") - before
    assert grown <= ALLOWED + path.stat().st_size, f"{grown >> 20} MB for a file of {path.stat().st_size} bytes"
    return not complaint
