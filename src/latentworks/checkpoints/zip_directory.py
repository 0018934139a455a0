"""Where the entries of a zip file lie: read from its directory with bounds on everything, without taking them out."""

import zlib
from typing import NamedTuple

from latentworks.checkpoints.mapped import MappedFile

__all__ = ["Entry", "inflate", "read_directory"]

DIRECTORY = 2 << 20
"""Longest directory read, in bytes; a checkpoint of 3,000 tensors has 0.2 MB."""

_WIDE = 0xFFFFFFFF
"""In place of a size or an offset that is in the entry's 64-bit part."""


class Entry(NamedTuple):
    """``stored`` bytes from ``start`` on, which are ``size`` ones once they are taken out."""

    start: int
    stored: int
    size: int
    deflated: bool


def read_directory(file: MappedFile) -> dict[str, Entry]:
    """The entries of a mapped zip file, by name. Raises: ValueError when it is damaged, encrypted, or a name occurs twice."""
    position, length = _directory(file)
    if length > DIRECTORY:
        raise ValueError(f"its directory has {length} bytes: more than {DIRECTORY}")
    data = file.bytes(position, length)
    entries: dict[str, Entry] = {}
    at = 0
    while at < length:
        if data[at : at + 4] != b"PK\x01\x02" or at + 46 > length:
            raise ValueError("its directory is damaged")
        name_length, extra_length, comment = (_int(data, at + place, 2) for place in (28, 30, 32))
        name = data[at + 46 : at + 46 + name_length].decode()
        extra = data[at + 46 + name_length : at + 46 + name_length + extra_length]
        if name in entries:
            raise ValueError(f"{name} occurs twice in it")
        entries[name] = _entry(file, name, data[at : at + 46], extra)
        at += 46 + name_length + extra_length + comment
    return entries


def _directory(file: MappedFile) -> tuple[int, int]:
    """Begin and length of the directory, from the record at the end of the file."""
    tail_start = max(0, file.size - 65557)  # the record and the longest comment
    tail = file.bytes(tail_start, file.size - tail_start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise ValueError("the end of the zip file is missing: it is cut short or no zip file")
    length, position = _int(tail, end + 12, 4), _int(tail, end + 16, 4)
    if _WIDE in (length, position) and end >= 20 and tail[end - 20 : end - 16] == b"PK\x06\x07":
        record = file.bytes(_int(tail, end - 12, 8), 56)
        length, position = _int(record, 40, 8), _int(record, 48, 8)
    return position, length


def _entry(file: MappedFile, name: str, record: bytes, extra: bytes) -> Entry:
    flags, method = _int(record, 8, 2), _int(record, 10, 2)
    if flags & 1 or method not in (0, 8):
        raise ValueError(f"{name} is encrypted or compressed in a way that is not supported")
    values = [_int(record, place, 4) for place in (24, 20, 42)]  # size, stored size, offset
    wide = _wide(extra)
    for i, value in enumerate(values):
        if value == _WIDE:
            values[i], wide = _int(wide, 0, 8), wide[8:]
    size, stored, offset = values
    local = file.bytes(offset, 30)
    if local[:4] != b"PK\x03\x04" or (method == 0 and size != stored):
        raise ValueError(f"{name} is not where the directory says")
    start = offset + 30 + _int(local, 26, 2) + _int(local, 28, 2)
    if start + stored > file.size:
        raise ValueError(f"{name} reaches beyond the end of the file: it is cut short or damaged")
    return Entry(start, stored, size, method == 8)


def _wide(extra: bytes) -> bytes:
    """The 64-bit sizes and offsets among an entry's extra fields."""
    while len(extra) >= 4:
        kind, length = _int(extra, 0, 2), _int(extra, 2, 2)
        if kind == 1:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _int(data: bytes, start: int, length: int) -> int:
    if start + length > len(data):
        raise ValueError("its directory is damaged")
    return int.from_bytes(data[start : start + length], "little")


def inflate(data: bytes, size: int) -> bytes:
    """Deflated bytes taken out, ``size`` of them and never more. Raises: ValueError when there are others."""
    try:
        decoder = zlib.decompressobj(-15)
        content = decoder.decompress(data, size) if size else b""
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated: {error}") from None
    if len(content) != size or decoder.unconsumed_tail:
        raise ValueError("it has another size than the zip file's directory says")
    return content
