"""Arrays larger than memory: written some rows at a time, read where they lie."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

__all__ = ["Rows", "open_rows", "write_rows"]

Rows = Shaped[np.ndarray, "n ..."]


def write_rows(path: Path, total: int, chunks: Iterable[Rows]) -> Iterator[int]:
    """Write a ``.npy`` file of ``total`` rows from successive chunks of one dtype; yields the rows written so far.

    It is not written through a memory map: a full disk must be an error (OSError), not a crash.
    """
    done = 0
    with path.open("wb") as file:
        for rows in chunks:
            if not done:
                header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False, "shape": (total, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).tobytes())
            done += len(rows)
            yield done


def open_rows(path: Path, total: int) -> Rows | None:
    """The file, mapped into memory; None if it is missing, cut short or another one."""
    try:
        rows: Rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return rows if len(rows) == total else None
