"""Pictures of a report, each inside the page: the grids of a run, and reconstructions of held-out images with their error."""

import io
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from latentworks.checkpoints.native import is_model_folder, load_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.data.dataset import ImageDataset
from latentworks.data.sources import FolderSource
from latentworks.data.transforms import from_tensor
from latentworks.first_stage import FirstStage, IdentityFirstStage
from latentworks.metrics.paired import psnr
from latentworks.recipe import NOUNS
from latentworks.report.blocks import Block, Picture, Pictures, Text
from latentworks.report.run import Run

__all__ = ["embedded", "grids", "reconstructions"]

GRIDS = 12
"""Grids of a run that are shown at most: the first, the last, and others evenly between."""

SHOWN = 8
"""Images that are reconstructed."""

TIMES = 4
"""Errors are shown so many times as large."""

_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def embedded(path: Path, alt: str, caption: str = "") -> Picture:
    """A picture's own bytes. Raises: ValueError naming a file that is damaged or no PNG, JPEG or WebP."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=list(_TYPES)) as image:
            image.load()
            mime, (width, height) = _TYPES[str(image.format)], image.size
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is damaged or no picture ({type(error).__name__}) and is left out") from None
    return Picture(_uri(mime, content), width, height, alt, caption)


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{b64encode(content).decode()}"


def grids(run: Run, notes: list[str]) -> list[Block]:
    """What the model made of fixed inputs at intervals; a damaged file is added to ``notes``."""
    first_stage = run.recipe.kind == "first_stage"
    what = "held-out images above their reconstructions" if first_stage else "samples from fixed noise for fixed conditions"
    pictures = list[Picture]()
    for step, path in _spread(run.grids, GRIDS):
        try:
            pictures.append(embedded(path, f"{what} at step {step}", f"step {step:,}"))
        except ValueError as error:
            notes.append(str(error))
    if not pictures:
        return []
    drawn = run.recipe.sampling if run.recipe.kind == "latent_diffusion" else None
    how = f" ({drawn.sampler}, {drawn.steps} steps, guidance {drawn.guidance:g})" if drawn else ""
    some = f"; {len(pictures)} of {len(run.grids)} are shown" if len(pictures) < len(run.grids) else ""
    intro = Text(f"Made with the averaged weights: {what}{how}{some}.")
    return [intro, Pictures([("", [picture]) for picture in pictures], slides=True)]


def _spread(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most so many, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


@torch.no_grad()
def reconstructions(run: Run, data: Path, notes: list[str]) -> list[Block]:
    """Some held-out images, what is left of them after the first stage, and the error, made now with the run's last weights, or the best
    ones while it has no others; that it has none yet, or damaged ones, is added to ``notes``. Raises: ValueError for a folder without
    held-out images that fit.
    """
    ended = is_model_folder(run.folder / "model") or not is_model_folder(run.folder / "best")
    try:
        model, recipe = load_folder(resolve_model(run.folder) if ended else run.folder / "best")
    except ValueError as error:
        notes.append(str(error))
        return []
    first_stage = model if isinstance(model, FirstStage) else model.first_stage
    if isinstance(first_stage, IdentityFirstStage):
        return [Text(f"This {NOUNS[recipe.kind]} works on pixels: its first stage changes nothing, so there is nothing to reconstruct.")]
    source = FolderSource(data, split="held_out", channels=recipe.plain.channels)
    dataset = ImageDataset(source, recipe.plain, captions="main")
    batch = dataset.batch(dataset.indices_for(0, min(SHOWN, len(dataset))))
    x = batch["image"]
    y = first_stage(x).image.float().clamp(-1, 1)
    captions, rows = batch.get("text", [""] * len(x)), []
    for i, decibels in enumerate(psnr(y, x).tolist()):
        wrong = ((y[i] - x[i]).abs().mean(0, keepdim=True) * TIMES - 1).clamp(max=1)
        what = captions[i] or f"held-out image {i + 1}"
        shown = zip((x[i], y[i], wrong), ("original", "reconstruction", f"error x {TIMES}"), strict=True)
        rows.append((f"{what}: {decibels:.1f} dB", [_shown(image, f"{name} of {what}", name) for image, name in shown]))
    mean = float(psnr(y, x).mean())
    about = (
        f"{len(x)} held-out images of {source.path.resolve().name} at {recipe.plain.out_size} px with the run's "
        f"{'last' if ended else 'best'} weights, PSNR {mean:.2f} dB on average. The error is the absolute one, a mean over channels, "
        f"{TIMES} times as bright; black is none. lw evaluate measures all of them."
    )
    return [Text(about), Pictures(rows)]


def _shown(image: torch.Tensor, alt: str, caption: str) -> Picture:
    """An image ``c h w`` as a PNG; of more than 3 channels the first 3, of 2 the first."""
    channels = image.shape[0] if image.shape[0] in (1, 3) else 3 if image.shape[0] > 3 else 1
    pixels = from_tensor(image[None, :channels])[0]
    written = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else np.ascontiguousarray(pixels)).save(written, "PNG", optimize=True)
    return Picture(_uri("image/png", written.getvalue()), pixels.shape[1], pixels.shape[0], alt, caption)
