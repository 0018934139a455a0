"""Reads a ``torch.save`` zip file without running anything in it: tensors and plain containers only; every other class is inert."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Inert", "load_pickle"]

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stands for an object of a class that is not allowed (a training library's callback, say): takes anything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        return Inert()

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Nothing."""

    def extend(self, items: object) -> None:
        """Nothing."""

    def add(self, item: object) -> None:
        """Nothing."""


class _Reader(pickle.Unpickler):
    """Never imports: a name is on the list below, or becomes a fresh subclass of `Inert`."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name), encoding="utf-8")
        self.archive = archive
        self.root = name.removesuffix("data.pkl")
        self.stubs: dict[str, type[Inert]] = {}
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,  # its name in protocol 2
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
            "torch.Size": tuple,
        }
        full = f"{module}.{name}"
        if full in allowed:
            return allowed[full]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return self.stubs.setdefault(full, type(name.rpartition(".")[2], (Inert,), {}))

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"storage of an unknown kind: {kind}, {dtype}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} holds {len(data)} bytes, not {count} values of {dtype}")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: object) -> Tensor:
    return data


def load_pickle(path: Path) -> Any:
    """The object in a ``torch.save`` file: nested containers of tensors (on the CPU) and plain values, `Inert` for anything else.

    Raises: ValueError when the file is missing, not a zip of ``torch.save``, damaged, or asks for what is not allowed.
    """
    problems: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, TypeError, AttributeError, IndexError)
    problems = (*problems, ValueError, RuntimeError, EOFError, UnicodeDecodeError)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise pickle.UnpicklingError("it has no data.pkl")
            order = names[0].removesuffix("data.pkl") + "byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise pickle.UnpicklingError("it was written on a big-endian machine")
            return _Reader(archive, names[0]).load()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except problems as error:
        raise ValueError(f"{path} is no torch.save file of tensors that can be read safely: {error}") from None
