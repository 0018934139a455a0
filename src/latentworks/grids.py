"""Pictures of several pictures: captioned sheets, and what a model under training makes of fixed inputs."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentworks.conditioners import LabelConditioner
from latentworks.data.transforms import from_tensor
from latentworks.engine import Engine
from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.pipeline import Drawn, Pipeline, SampleRequest
from latentworks.recipe import DiffusionRecipe, Model, Recipe
from latentworks.staging import staged_file
from latentworks.types import Batch

__all__ = ["grid", "save_sheet", "sheet"]

GRID = 16
"""Samples in the grid of a latent diffusion model; a first stage shows half as many pairs."""
LINE, MARGIN = 13, 4


def sheet(images: Sequence[Image.Image], captions: Sequence[str] | None = None, columns: int = 8, scale: int = 1) -> Image.Image:
    """RGB images of one size in rows on white, each enlarged ``scale`` times with its caption below in at most two lines."""
    width, height = (side * scale for side in images[0].size)
    below = 2 * LINE + MARGIN if captions else 0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    out = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * (height + below + MARGIN) + MARGIN), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for i, image in enumerate(images):
        x, y = MARGIN + i % columns * (width + MARGIN), MARGIN + i // columns * (height + below + MARGIN)
        out.paste(image.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (x, y))
        for line, text in enumerate(_wrapped(_plain(captions[i]), width, font) if captions else ()):
            draw.text((x, y + height + 1 + line * LINE), text, "black", font)
    return out


def _plain(text: str) -> str:
    """Without accents, and ? for other letters: Pillow's own font has no more than ASCII."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c.isascii() else "?" for c in letters)


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in at most two lines of so many pixels; what does not fit ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 2:
        lines = [lines[0], lines[1] + " …"]
    for i, line in enumerate(lines):
        while font.getlength(line) > width and len(line) > 2:
            line = line[:-2].rstrip() + "…"
        lines[i] = line
    return lines


def save_sheet(path: Path, image: Image.Image) -> None:
    """Write a PNG whole or not at all. Raises: ValueError if it cannot be written."""
    with staged_file(path) as temporary:
        image.save(temporary, "PNG")


def grid(model: Model, recipe: Recipe, batch: Batch) -> Image.Image | None:
    """What a model under training makes of a batch, where it is; None of a classifier, which draws nothing."""
    match model:
        case FirstStage():
            return _reconstructions(model, batch)
        case LatentDiffusion():
            assert isinstance(recipe, DiffusionRecipe)
            return _samples(model, recipe, batch)
        case NoisyClassifier():
            return None


@torch.no_grad()
def _reconstructions(first_stage: FirstStage, batch: Batch) -> Image.Image:
    """Images above their reconstructions."""
    x = batch["image"][: GRID // 2].to(first_stage.mean.device)
    return sheet([*_pictures(x), *_pictures(first_stage(x).image)], columns=len(x), scale=2)


def _samples(model: LatentDiffusion, recipe: DiffusionRecipe, batch: Batch) -> Image.Image:
    """Samples from fixed noise for the conditions of a batch that the model reads, with the recipe's sampling defaults."""
    engine = Engine.parse({"device": model.first_stage.mean.device.type})
    pipeline = Pipeline(model, recipe.sampling, recipe.data.out_size, engine)
    requests, captions = [SampleRequest(n=GRID)], list[str]()
    for conditioner in model.conditioners:
        if conditioner.field == "text":
            captions = batch["text"][:GRID]
            requests = [SampleRequest(prompt=tuple(captions))]
        elif isinstance(conditioner, LabelConditioner):
            labels = sorted(set(batch["label"].tolist()))[: GRID // 2]
            captions = [(conditioner.config.names or range(conditioner.config.classes))[label] for label in labels for _ in range(2)]
            requests = [SampleRequest(label=label, n=2) for label in labels]
    drawn = (event for request in requests for event in pipeline.draw(request) if isinstance(event, Drawn))
    return sheet([image for one in drawn for image in _visible(one.pixels)], list(map(str, captions)), columns=8, scale=2)


def _pictures(x: Tensor) -> list[Image.Image]:
    return _visible(from_tensor(x))


def _visible(pixels: Shaped[np.ndarray, "b h w c"]) -> list[Image.Image]:
    """8-bit pictures to look at; of more than 3 channels the first 3, of 2 the first."""
    shown = pixels if pixels.shape[3] in (1, 3) else pixels[..., : 3 if pixels.shape[3] > 3 else 1]
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in shown]
