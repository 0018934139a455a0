"""Writing whole things or nothing: a folder or a file is filled beside its place and takes it in one rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

__all__ = ["check_place", "staged", "staged_file"]


@contextmanager
def staged(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A sibling folder to write into; it takes ``folder``'s place only if the block succeeds, else it is removed.

    ``replace``: what is in ``folder`` already is replaced; otherwise a folder that is not empty is an error. Everything is on the disk
    before the rename. Raises: ValueError naming the folder when it cannot be written (no space, read-only, a file in the way).
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.staged")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                _flush(path)
        if replace and folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise _refusal(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists():
            if not folder.exists():
                old.rename(folder)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A sibling file name to write to; it takes ``path``'s place only if the block succeeds, else it is removed. Raises: as `staged`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.staged{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise _refusal(path, error) from None
    finally:
        with suppress(OSError):  # also where its folder could not be made
            temporary.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Before long work whose result goes to ``path``, a file whose folder need not exist yet. Raises: as `staged`."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refusal(path, error) from None


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _refusal(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; nothing was changed there")
