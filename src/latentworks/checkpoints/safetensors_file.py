"""The safetensors format: a header that is checked against the file before memory is taken, and a writer that needs no second copy."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentworks.checkpoints.mapped import MappedFile

__all__ = ["read_safetensors", "write_safetensors"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

HEADER = 16 << 20
"""Longest header read, in bytes; that of a model of the paper has under 1 MB."""


def read_safetensors(file: MappedFile) -> dict[str, Tensor]:
    """All tensors of a mapped safetensors file, by name, in the order of the file.

    Raises: ValueError naming what is wrong with the header, before anything of the size it claims is made.
    """
    header, start = _header(file)
    places = sorted(((name, *_entry(name, entry)) for name, entry in header.items()), key=lambda place: place[3:])
    position = start
    for name, dtype, shape, begin, end in places:
        if begin != position - start:
            raise ValueError(f"{name}: its data begins at {begin} instead of {position - start}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {end - begin} bytes for shape {list(shape)} of {_NAMES[dtype]}")
        position = start + end
    if position != file.size:
        raise ValueError(f"it has {file.size} bytes, but its header describes {position}")
    return {name: file.tensor(start + begin, math.prod(shape), dtype).view(shape) for name, dtype, shape, begin, _ in places}


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where the data begins."""
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > min(HEADER, file.size - 8):
        raise ValueError(f"its header should have {length} bytes: more than {'the file' if length > file.size - 8 else 'is allowed'}")
    try:
        header = json.loads(file.bytes(8, length).decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    header.pop("__metadata__", None)
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} in its header")


def _entry(name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, begin and end of one tensor."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: not described by dtype, shape and data_offsets")
    if entry["dtype"] not in list(_DTYPES):
        raise ValueError(f"{name}: values of type {entry['dtype']!r}; supported are {', '.join(_DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"{name}: shape and data_offsets must be lists of integers from 0 on, the latter of two")
    return _DTYPES[entry["dtype"]], tuple(shape), offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, dtypes: Mapping[str, torch.dtype] | None = None
) -> None:
    """Write a safetensors file, tensor by tensor: none is copied as long as it is on the CPU and contiguous.

    ``dtypes``: those to be written in another type than they have, by name. Tensors may share memory; each is written by itself.
    Raises: OSError when it cannot be written; ValueError when a type has no name in the format.
    """
    targets = {name: (dtypes or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}
    for name, dtype in targets.items():
        if dtype not in _NAMES:
            raise ValueError(f"{name}: values of type {dtype} cannot be written; supported are {', '.join(map(str, _NAMES))}")
    order = sorted(tensors, key=lambda name: (-targets[name].itemsize, name))  # wide types first, so that all are aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        end = position + tensors[name].numel() * targets[name].itemsize
        header[name] = {"dtype": _NAMES[targets[name]], "shape": list(tensors[name].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            values = tensors[name].detach().to("cpu", targets[name]).contiguous().reshape(-1).view(torch.uint8)
            file.write(values.numpy().data)
