"""Reads a ``torch.save`` zip file without running anything in it: tensors and plain containers only; every other object is inert."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentworks.checkpoints.mapped import MappedFile
from latentworks.checkpoints.pickle_machine import Function, Inert, Machine, kind_of
from latentworks.checkpoints.pickle_names import DTYPES
from latentworks.checkpoints.zip_directory import Entry, inflate, read_directory

__all__ = ["Inert", "load_pickle", "read_pickle"]

PICKLE = 4 << 20
"""Longest pickle read, in bytes; that of a checkpoint with 3,000 tensors has 0.5 MB."""

_PROBLEMS = (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError, RuntimeError)


def load_pickle(path: Path) -> Any:
    """The object in a ``torch.save`` file: nested containers of tensors (on the CPU) and plain values, `Inert` for anything else.

    Its tensors lie in the mapped file: nothing is read before it is used, and changing one does not change the file.
    Raises: ValueError in one line when the file is missing, not a zip of ``torch.save``, damaged, or asks for what is not allowed.
    """
    try:
        return read_pickle(MappedFile(path))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def read_pickle(file: MappedFile) -> Any:
    """As `load_pickle`, of a file that is mapped already. Raises: ValueError that does not name the file."""
    try:
        entries = read_directory(file)
        names = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise ValueError("it has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        storages = _Storages(file, entries, root)
        if f"{root}byteorder" in entries and storages.content(entries[f"{root}byteorder"], 16) != b"little":
            raise ValueError("it was written on a big-endian machine")
        pickle = storages.content(entries[names[0]], PICKLE)
        return Machine(_MEANINGS, storages.load).run(pickle)
    except _PROBLEMS as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"is no torch.save file of tensors that can be read safely: {text}") from None


class _Storages:
    """The tensors' memory in the entries of a file, each once."""

    def __init__(self, file: MappedFile, entries: dict[str, Entry], root: str) -> None:
        self.file, self.entries, self.root = file, entries, root
        self.made: dict[tuple[str, torch.dtype], Tensor] = {}
        self.free = file.size  # bytes that may be copied: entries may lie over one another

    def content(self, entry: Entry, limit: int) -> bytes:
        """An entry, taken out. Raises: ValueError when it is longer than ``limit``."""
        if max(entry.size, entry.stored) > limit:
            raise ValueError(f"an entry has {entry.size} bytes: more than {limit}")
        data = self.file.bytes(entry.start, entry.stored)
        return inflate(data, entry.size) if entry.deflated else data

    def load(self, pid: Any) -> Tensor:
        """The storage meant by a persistent id, as a tensor of one dimension."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or type(pid[4]) is not int or not isinstance(pid[2], str):
            raise ValueError("a storage is asked for in an unknown way")
        dtype, key, count = pid[1], pid[2], pid[4]
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a storage of an unknown kind: {kind_of(dtype)}")
        if (key, dtype) not in self.made:
            entry = self.entries.get(f"{self.root}data/{key}")
            if entry is None:
                raise ValueError(f"storage {key} is not in the file")
            if entry.size != count * dtype.itemsize:
                raise ValueError(f"storage {key} holds {entry.size} bytes, not {count} values of {dtype}")
            self.made[key, dtype] = self._tensor(entry, count, dtype)
        return self.made[key, dtype]

    def _tensor(self, entry: Entry, count: int, dtype: torch.dtype) -> Tensor:
        if entry.deflated or entry.start % dtype.itemsize:
            self.free -= entry.size + entry.stored
            if self.free < 0:
                raise ValueError("its storages are larger than the file")
        if entry.deflated and count:
            return torch.frombuffer(bytearray(self.content(entry, self.file.size)), dtype=dtype)
        return self.file.tensor(entry.start, count, dtype)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> Tensor:
    """A tensor in its storage. Raises: ValueError when it would reach outside, or be larger."""
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a tensor is asked for in an unknown way")
    if len(size) != len(stride) or len(size) > 64:
        raise ValueError(f"a tensor has {len(size)} sizes but {len(stride)} strides")
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count, last = count * length, last + (length - 1) * step
    if count and (last >= storage.numel() or count > storage.numel()):
        raise ValueError(f"a tensor of shape {list(size)} reaches outside its storage of {storage.numel()} values")
    return storage.as_strided(size, stride, offset if count else 0)


def _parameter(data: Any, *_: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError(f"a parameter is made of {kind_of(data)}")
    return data


def _with_state(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """A tensor that was given attributes, which are left out."""
    if function not in (_MEANINGS["torch._utils._rebuild_tensor_v2"], _MEANINGS["torch._utils._rebuild_parameter"]):
        raise ValueError(f"it calls {kind_of(function)}, which is refused")
    tensor: Tensor = function.call(*arguments)
    return tensor


_CALLED: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_state,
    "torch.Size": lambda size=(): size,
    "collections.defaultdict": lambda *_: {},
}
_MEANINGS: dict[str, Any] = {**{name: Function(call) for name, call in _CALLED.items()}, **DTYPES}
