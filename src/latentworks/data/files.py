"""One image file: its header at little cost, and its pixels in their own depth, ``h w c``."""

import math
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

__all__ = ["SUFFIXES", "CorruptImage", "Header", "as_hole", "read_header", "read_image", "read_labels"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".npy")
"""The files taken for images, in upper or lower case."""

_FORMATS = ("PNG", "JPEG", "WEBP")  # by content, whatever the suffix says: a JPEG called .png is common
_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "F": 1, "LA": 2, "RGB": 3, "P": 3, "CMYK": 3, "YCbCr": 3, "PA": 4, "RGBA": 4}
_PNG16 = {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}  # what Pillow would cut down to 8 bits
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112

T = TypeVar("T")


class CorruptImage(ValueError):  # noqa: N818 - what it is about, as in `except CorruptImage`
    """A file whose pixels cannot be had; ``reason`` says why, the message names the file as well."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.reason = reason


class Header(NamedTuple):
    """What an image will be once read: upright height and width, channels and uint8, uint16 or float32."""

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]


def read_header(path: Path) -> Header:
    """The shape and depth of an image without decoding it. Raises: CorruptImage."""
    return _guarded(path, {".npy": _npy_header, ".tif": _tiff_header, ".tiff": _tiff_header}.get(path.suffix.lower(), _header))


def read_image(path: Path) -> np.ndarray:
    """The pixels ``h w c`` as uint8, uint16 or float32 in 0..1, upright by EXIF; of a palette its colours, of bilevel images 0 and 255.

    16 bits are kept exactly. Pages or planes of a TIFF are channels; of an animation the first picture counts.
    Raises: CorruptImage naming the file if it is damaged, no image, or of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    return _guarded(path, {".npy": _read_npy, ".tif": _read_tiff, ".tiff": _read_tiff}.get(path.suffix.lower(), _read))


def read_labels(path: Path) -> np.ndarray:
    """The values ``h w`` of a label map or mask as they are stored: of a palette the indices, not the colours. Raises: CorruptImage."""
    return _guarded(path, _read_labels)


def as_hole(values: np.ndarray) -> np.ndarray:
    """A mask as it is stored, 0 and 1 or 0 and 255 -> booleans, true where the hole is: what is brighter than half."""
    return values > (0 if values.max() <= 1 else 127)


def _read_labels(path: Path) -> np.ndarray:
    with _opened(path, ("PNG",)) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ValueError(f"its pixels are {image.mode}; a label map has one number a pixel: save it as a grey or palette PNG")
        values = np.asarray(image)
    return np.ascontiguousarray(values.astype(np.uint8) if values.dtype == bool else values)


def _guarded(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except UnidentifiedImageError:
        raise CorruptImage(path, f"its content is not {', '.join(_FORMATS)} or TIFF") from None
    except Exception as error:  # decoders answer damaged bytes with nearly any exception
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(path, reason) from None


def _bounded(height: int, width: int, channels: int) -> tuple[int, int, int]:
    """The shape itself, unless decoding it could exhaust memory. A pixel of up to four channels counts once, as in Pillow."""
    pixels, limit = height * width * max(1, math.ceil(channels / 4)), Image.MAX_IMAGE_PIXELS
    if pixels == 0:
        raise ValueError("it has no pixels")
    if limit is not None and pixels > limit:
        raise ValueError(f"its {pixels:,} pixels exceed the limit of {limit:,}; make it smaller")
    return height, width, channels


def _depth(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The depth in which values of ``dtype`` are kept."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    if dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return dtype.newbyteorder("=")
    raise ValueError(f"its values are {dtype}; expected uint8, uint16 or float in 0..1")


def _values(image: np.ndarray) -> np.ndarray:
    """The same values, contiguous, in the depth that is kept. Raises: ValueError if floats leave 0..1."""
    if image.dtype.kind == "f" and not (image.min() >= 0 and image.max() <= 1):  # NaN fails both
        raise ValueError(f"its floats reach from {image.min():g} to {image.max():g}; expected 0..1")
    return np.ascontiguousarray(image * np.uint8(255) if image.dtype.kind == "b" else image, _depth(image.dtype))


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """``h w c`` upright, by the EXIF orientation 1..8."""
    if orientation in _TURNED:
        image = image.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])


# PNG, JPEG, WebP: Pillow


def _opened(path: Path, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    image = Image.open(path, formats=formats)
    _bounded(image.height, image.width, len(image.getbands()))
    return image


def _rawmode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    return str(tiles[0][3]) if tiles else ""


def _header(path: Path, formats: tuple[str, ...] = _FORMATS) -> Header:
    with _opened(path, formats) as image:
        height, width = image.height, image.width
        # PngImageFile.getexif decodes the whole picture first; what stands before the pixels has to do here.
        if Image.Image.getexif(image).get(_ORIENTATION) in _TURNED:
            height, width = width, height
        if _rawmode(image) in _PNG16:
            return Header(height, width, _PNG16[_rawmode(image)], np.dtype(np.uint16))
        if image.mode not in _CHANNELS:
            raise ValueError(f"its values are {image.mode!r}; expected 8 or 16 bits or float")
        dtype = np.uint16 if image.mode.startswith("I;16") else np.float32 if image.mode == "F" else np.uint8
        return Header(height, width, _CHANNELS[image.mode] + ("transparency" in image.info and dtype is np.uint8), np.dtype(dtype))


def _read(path: Path, formats: tuple[str, ...] = _FORMATS) -> np.ndarray:
    channels = _header(path, formats).channels
    with _opened(path, formats) as image:
        if _rawmode(image) in _PNG16:
            pixels = _read_png16(path, image)
        else:
            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
            exact = image.mode in (mode, "F") or image.mode.startswith("I;16")
            pixels = np.asarray(image if exact and "transparency" not in image.info else image.convert(mode))
            pixels = pixels.reshape(*pixels.shape[:2], channels)
        return _turn(_values(pixels), image.getexif().get(_ORIENTATION, 1))


def _read_png16(path: Path, image: Image.Image) -> np.ndarray:
    """All 16 bits of an LA, RGB or RGBA PNG, at the speed of Pillow's own decoder.

    Of two bytes a value, Pillow keeps the first; told that the file were little-endian it keeps the second: two passes have both.
    Grey with alpha has no little-endian reader but the same scan lines as 8-bit RGBA, so there the header is rewritten.
    """
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":
        data = bytearray(path.read_bytes())
        data[24:26] = 8, 6  # bit depth and colour type within IHDR
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with Image.open(BytesIO(data), formats=("PNG",)) as twin:
            return np.asarray(twin.convert("RGBA")).view(">u2")
    with Image.open(path, formats=("PNG",)) as twin:
        twin.tile = [twin.tile[0]._replace(args=rawmode.replace("16B", "16L"))]
        low = np.asarray(twin, np.uint16)
    return np.asarray(image, np.uint16) << 8 | low


# TIFF: tifffile, which knows scientific files; what it cannot decode alone (LZW, JPEG, CMYK, palettes), Pillow


def _is_plain(page: Any) -> bool:
    """Whether tifffile decodes a page by itself, to values that mean brightness."""
    plain = {tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE, tifffile.PHOTOMETRIC.RGB}
    return page.photometric in plain and page.compression in (1, 8, 32946, 32773)  # none, deflate (twice), packbits


def _tiff_layout(series: Any) -> tuple[tuple[int, ...], tuple[int, int, int], np.dtype[Any]]:
    """The order of axes that makes ``h w c`` of the first series, that shape, and the depth of its values."""
    axes, shape, bits = series.axes, series.shape, series.keyframe.bitspersample
    rest = [i for i in range(len(axes)) if axes[i] not in "YX"]
    long = [i for i in rest if shape[i] > 1]
    if axes.count("Y") != 1 or axes.count("X") != 1 or len(long) > 1:
        raise ValueError(f"its axes are {axes} of {shape}; expected height, width and one axis of channels, planes or pages")
    y, x = axes.index("Y"), axes.index("X")
    if bits not in (1, 8, 16, 32, 64):
        raise ValueError(f"it has {bits} bits a value; expected 8, 16 or float")
    order = (*(i for i in rest if i not in long), y, x, *long)
    return order, _bounded(shape[y], shape[x], shape[long[0]] if long else 1), _depth(series.dtype)


def _tiff_orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None else 1


def _tiff_header(path: Path) -> Header:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if _is_plain(page):
            _, (height, width, channels), dtype = _tiff_layout(file.series[0])
            turned = _tiff_orientation(page) in _TURNED
            return Header(*((width, height) if turned else (height, width)), channels, dtype)
        _check_pillow_can(page)
    return _header(path, ("TIFF",))


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if _is_plain(page):
            order, shape, _ = _tiff_layout(file.series[0])
            image = _values(file.series[0].asarray().transpose(order).reshape(shape))
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                image = (1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max) - image
            return _turn(image, _tiff_orientation(page))
        _check_pillow_can(page)
    return _read(path, ("TIFF",))


def _check_pillow_can(page: Any) -> None:
    if page.bitspersample > 8 and page.samplesperpixel > 1:
        raise ValueError(f"{page.bitspersample}-bit colour with {page.compression.name} compression; save it with deflate or none")


# NumPy


def _npy(path: Path) -> np.ndarray:
    """``h w c``, mapped from the file rather than read."""
    array = np.lib.format.open_memmap(path, mode="r")
    if array.ndim not in (2, 3):
        raise ValueError(f"its shape is {array.shape}; expected h w or h w c")
    image = array.reshape(*array.shape[:2], 1) if array.ndim == 2 else array
    _bounded(*image.shape)
    return image


def _npy_header(path: Path) -> Header:
    image = _npy(path)
    height, width, channels = image.shape
    return Header(height, width, channels, _depth(image.dtype))


def _read_npy(path: Path) -> np.ndarray:
    return np.array(_values(_npy(path)))
