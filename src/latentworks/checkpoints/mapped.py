"""A file's bytes as tensors without reading them: they come from the disk when used, and go again when told."""

import mmap
import sys
import threading
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

__all__ = ["MappedFile", "release"]

_OPEN: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""The mapped files that tensors still live in, by address."""

_LOCK = threading.Lock()


class MappedFile:
    """A file in memory, copied on write: changing a tensor does not change the file. It is closed when its last tensor goes.

    Raises: ValueError when it is no file or empty; OSError when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file")
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise ValueError(f"{path} is empty")
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size = len(self.memory)
        with _LOCK:
            _OPEN[torch.frombuffer(self.memory, dtype=torch.uint8).data_ptr()] = self.memory

    def bytes(self, start: int, length: int) -> bytes:
        """A copy of some bytes. Raises: ValueError when the file ends before."""
        self._check(start, length)
        return self.memory[start : start + length]

    def tensor(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """``count`` values from the byte ``start`` on, one-dimensional. Raises: ValueError when the file ends before."""
        self._check(start, count * dtype.itemsize)
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if start % dtype.itemsize:  # a processor may want values at multiples of their size
            return torch.frombuffer(bytearray(self.bytes(start, count * dtype.itemsize)), dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start)

    def _check(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.size:
            raise ValueError(f"it should have {length} bytes at {start}, but has {self.size} in all: it is cut short or damaged")


def release(tensor: Tensor) -> None:
    """Give back the memory a tensor of a mapped file takes up; used again, it is read again. Without effect on any other tensor.

    What was changed in such a tensor after it was read is lost.
    """
    if sys.platform == "win32" or tensor.device.type != "cpu":
        return
    storage = tensor.untyped_storage()
    with _LOCK:
        files = [(ref.key, file) for ref in _OPEN.valuerefs() if (file := ref()) is not None]
    for address, file in files:
        begin = storage.data_ptr() - address
        if 0 <= begin < len(file):
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the ends belong to the neighbours too
            length = (begin + storage.nbytes() - first) // mmap.PAGESIZE * mmap.PAGESIZE
            if length > 0:
                file.madvise(mmap.MADV_DONTNEED, first, length)
