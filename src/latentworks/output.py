"""Finished images to files: PNG with the settings inside where PNG can hold the pixels, else TIFF with them in its description."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from latentworks.pipeline import picture
from latentworks.request import SampleRequest, settings, settings_png
from latentworks.staging import staged_file

__all__ = ["file_stem", "save_image"]


def file_stem(request: SampleRequest) -> str:
    """A file name of a request: its prompt or class in plain characters, then its seed."""
    words = request.prompt if isinstance(request.prompt, str) else "" if request.label is None else f"class {request.label}"
    plain = re.sub(r"[^\w]+", "-", words or "sample").strip("-")[:60] or "sample"
    return f"{plain}-{request.seed}"


def save_image(folder: Path, pixels: Shaped[np.ndarray, "h w c"], request: SampleRequest, metadata: bool = True) -> Path:
    """Write ``pixels`` losslessly; the path written. A taken name gets a number. Raises: ValueError when it cannot be written."""
    as_png = (pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3, 4)) or (pixels.dtype == np.uint16 and pixels.shape[2] == 1)
    suffix = ".png" if as_png else ".tiff"
    path = _free(folder / (file_stem(request) + suffix))
    with staged_file(path) as temporary:
        if as_png:
            image = picture(pixels, request)
            image.save(temporary, "PNG", pnginfo=settings_png(image) if metadata else None)
        else:
            import tifffile

            description = settings(request)["latentworks"] if metadata else ""
            tifffile.imwrite(temporary, pixels, photometric="minisblack", planarconfig="contig", description=description)
    return path


def _free(path: Path) -> Path:
    """The path, or the first numbered one that is not taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
