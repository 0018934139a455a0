"""Pictures of several pictures: captioned sheets, and what a model under training makes of fixed inputs."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentworks.conditioners import (
    Conditioner,
    LabelConditioner,
    LayoutConditioner,
    LowResConditioner,
    SegmentationConditioner,
)
from latentworks.data.palette import class_colours, paint
from latentworks.data.transforms import from_tensor
from latentworks.engine import Engine
from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.objectives.alignment import AlignmentObjectiveConfig
from latentworks.pipeline import Drawn, Pipeline
from latentworks.recipe import DiffusionRecipe, Model, Recipe
from latentworks.request import SampleRequest
from latentworks.staging import staged_file
from latentworks.types import Batch, Box

__all__ = ["boxes_picture", "condition_pictures", "grid", "save_sheet", "sheet"]

GRID = 16
"""Samples in the grid of a latent diffusion model; a first stage shows half as many pairs."""
LINE, MARGIN = 13, 4
_OUTLINES = ("crimson", "royalblue", "seagreen", "darkorange", "purple", "teal")


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
    """What a model under training makes of a batch, where it is; None of a classifier, and while text alone learns: nothing is drawn."""
    match model:
        case FirstStage():
            return _reconstructions(model, batch)
        case LatentDiffusion():
            assert isinstance(recipe, DiffusionRecipe)
            return None if isinstance(recipe.objective, AlignmentObjectiveConfig) else _samples(model, recipe, batch)
        case NoisyClassifier():
            return None


@torch.no_grad()
def _reconstructions(first_stage: FirstStage, batch: Batch) -> Image.Image:
    """Images above their reconstructions."""
    x = batch["image"][: GRID // 2].to(first_stage.mean.device)
    return sheet([*_pictures(x), *_pictures(first_stage(x).image)], columns=len(x), scale=2)


def _samples(model: LatentDiffusion, recipe: DiffusionRecipe, batch: Batch) -> Image.Image:
    """Samples from fixed noise for the conditions of a batch, with the recipe's sampling defaults; conditions that are pictures above."""
    engine = Engine.parse({"device": model.first_stage.mean.device.type})
    pipeline = Pipeline(model, recipe.sampling, recipe.data.out_size, engine)
    conditions, captions = list[Image.Image](), list[str]()
    batch = _first(batch, GRID)
    for conditioner in model.conditioners:
        if conditioner.field == "text":
            captions = batch["text"]
        elif isinstance(conditioner, LabelConditioner):
            names = conditioner.config.names or range(conditioner.config.classes)
            captions = [str(names[label]) for label in batch["label"].tolist()]
        elif isinstance(conditioner, Conditioner):
            batch = _first(batch, GRID // 2)
            conditions = condition_pictures(conditioner, batch, pipeline.size)
    drawn = (event for event in pipeline.draw_batch(batch, SampleRequest()) if isinstance(event, Drawn))
    images = [image for one in drawn for image in _visible(one.pixels)]
    return sheet([*conditions, *images], captions * (2 if conditions else 1), columns=8, scale=2 if pipeline.size <= 64 else 1)


def condition_pictures(conditioner: Conditioner, batch: Batch, size: int) -> list[Image.Image]:
    """What a person sees of conditions that are boxes, label maps, small images or images with a hole, in ``size`` x ``size`` pixels."""
    match conditioner:
        case LayoutConditioner():
            return [boxes_picture(boxes, size, conditioner.config.names) for boxes in batch["boxes"]]
        case SegmentationConditioner():
            palette = conditioner.config.palette or class_colours(conditioner.config.classes)
            pictures = [Image.fromarray(paint(labels.cpu().numpy(), palette)) for labels in batch["segmentation"]]
        case LowResConditioner():
            pictures = _pictures(batch["low_res"])
        case _:
            pictures = _pictures(torch.where(batch["mask"].bool(), 0.0, batch["image"]))
    return [picture.resize((size, size), Image.Resampling.NEAREST) for picture in pictures]


def boxes_picture(boxes: Sequence[Box], size: int, names: Sequence[str] = ()) -> Image.Image:
    """Outlines of boxes with their classes on white, ``size`` x ``size`` pixels."""
    image = Image.new("RGB", (size, size), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(9)
    for i, box in enumerate(boxes):
        x, y, label = box["x"] * size, box["y"] * size, box["label"]
        draw.rectangle((x, y, x + box["width"] * size - 1, y + box["height"] * size - 1), outline=_OUTLINES[i % len(_OUTLINES)])
        draw.text((x + 2, y), _plain(names[label] if names and isinstance(label, int) else str(label)), "black", font)
    return image


def _first(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    return cast(Batch, {name: values[:count] for name, values in batch.items()})  # type: ignore[index]


def _pictures(x: Tensor) -> list[Image.Image]:
    return _visible(from_tensor(x))


def _visible(pixels: Shaped[np.ndarray, "b h w c"]) -> list[Image.Image]:
    """8-bit pictures to look at; of more than 3 channels the first 3, of 2 the first."""
    shown = pixels if pixels.shape[3] in (1, 3) else pixels[..., : 3 if pixels.shape[3] > 3 else 1]
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in shown]
