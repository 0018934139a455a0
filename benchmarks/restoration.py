"""What the benchmarks of restoration share: the images they measure on, drawing for many conditions, the figures of a set of results."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from latentworks.checkpoints.resolve import resolve_model
from latentworks.data.dataset import Extras, ImageDataset
from latentworks.data.listing import Split
from latentworks.data.sources import FolderSource
from latentworks.data.transforms import from_tensor, to_tensor
from latentworks.engine import Engine
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.metrics.paired import psnr, ssim
from latentworks.pipeline import Drawn, Pipeline, load_model
from latentworks.recipe import DiffusionRecipe, read_recipe
from latentworks.request import SampleRequest
from latentworks.types import Batch

__all__ = [
    "BATCH",
    "Figures",
    "Holes",
    "Images",
    "Measure",
    "Pictures",
    "crops",
    "drawn",
    "images",
    "pipeline",
    "recipe_of",
    "reconstructed",
]

Pictures = UInt8[np.ndarray, "n h w c"]
Holes = Bool[np.ndarray, "n h w"]
BATCH = 32


class Images(NamedTuple):
    """The first images of a part of a folder, as a model sees them, and what was asked to lie beside them."""

    name: str
    pixels: Pictures
    low_res: UInt8[np.ndarray, "n h2 w2 c"] | None
    holes: Holes | None


def recipe_of(name: str) -> DiffusionRecipe:
    """Of a model. Raises: ValueError if it is a first stage."""
    recipe = read_recipe(resolve_model(name) / "recipe.json")
    if not isinstance(recipe, DiffusionRecipe):
        raise ValueError(f"{name} is a first stage ({recipe.name}): give a diffusion model")
    return recipe


def images(folder: Path, recipe: DiffusionRecipe, extras: Extras, n: int, split: Split, seed: int, size: int | None = None) -> Images:
    """``size``: pixels a side, if not those the model was trained on. Raises: ValueError if there are fewer than ``n``."""
    plain = recipe.plain if size is None else recipe.plain.replace(size=size, crop_size=None)
    source = FolderSource(folder, split=split, channels=plain.channels)
    if len(source) < n:
        raise ValueError(f"-n {n}: {folder} has {len(source)} {split} images: give fewer, or make more (lw data scenes)")
    dataset = ImageDataset(source, plain, seed, captions="main", extras=extras)
    parts = [dataset.batch(range(start, min(start + BATCH, n))) for start in range(0, n, BATCH)]
    holes = np.concatenate([part["mask"][:, 0].numpy() for part in parts]) if extras.holes else None
    low_res = np.concatenate([from_tensor(part["low_res"]) for part in parts]) if extras.low_res else None
    pixels = np.concatenate([from_tensor(part["image"]) for part in parts])
    return Images(f"{folder.resolve().name} {split} at {plain.out_size} px", pixels, low_res, holes)


def pipeline(name: str, size: int | None = None, precision: str = "float32") -> Pipeline:
    """A model ready to draw ``size`` pixels a side, or as many as it was trained on."""
    recipe, engine = recipe_of(name), Engine.parse({"precision": precision})
    return Pipeline(load_model(name), recipe.sampling, size or recipe.data.out_size, engine, recipe.data.depth)


def drawn(pipe: Pipeline, fields: Callable[[slice], Batch], n: int, request: SampleRequest) -> Pictures:
    """One image for each row of the conditions that ``fields`` gives for a slice of them; image i has seed ``request.seed + i``."""
    made = []
    for start in range(0, n, request.batch):
        rows = slice(start, min(start + request.batch, n))
        batch: Batch = {"index": torch.arange(n)[rows], **fields(rows)}
        events = pipe.draw_batch(batch, request.replace(seed=request.seed + start))
        made += [event.pixels for event in events if isinstance(event, Drawn)]
    return np.concatenate(made)


def reconstructed(pipe: Pipeline, pixels: Pictures) -> Pictures:
    """What the first stage gives back of the images themselves: no model in its latents does better."""
    with torch.no_grad():
        parts = (to_tensor(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
        return np.concatenate([pipe.decode(pipe.model.encode(part)) for part in parts])


def crops(pixels: Pictures, holes: Holes) -> Iterator[UInt8[np.ndarray, "s s c"]]:
    """Of each image the smallest square around its hole, moved into the image where it would stand out."""
    for image, hole in zip(pixels, holes, strict=True):
        spans = [np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0)]
        side = min(max(span[-1] - span[0] + 1 for span in spans), *hole.shape)
        top, left = (
            int(np.clip((span[0] + span[-1] + 1 - side) // 2, 0, whole - side)) for span, whole in zip(spans, hole.shape, strict=True)
        )
        yield image[top : top + side, left : left + side]


class Figures(NamedTuple):
    """Means over images, but for the distance, which is one of sets. ``psnr`` in dB."""

    distance: float
    psnr: float
    ssim: float


class Measure:
    """Distance to a set of real images in the project's features, and PSNR and SSIM to each of them."""

    def __init__(self, real: Pictures) -> None:
        self.network = Lite0Features()
        self.real, self.features = real, self.embed(real)

    def __call__(self, made: Pictures) -> Figures:
        pairs = [(to_tensor(made[i : i + BATCH]), to_tensor(self.real[i : i + BATCH])) for i in range(0, len(made), BATCH)]
        near, alike = (torch.cat([measure(*pair) for pair in pairs]) for measure in (psnr, ssim))
        return Figures(self.distance(made), float(near.clamp(max=100).mean()), float(alike.mean()))  # equal ones would be infinite

    def distance(self, made: Pictures) -> float:
        """The Fréchet distance alone."""
        return frechet_distance(self.features, self.embed(made))

    def embed(self, pictures: Iterable[UInt8[np.ndarray, "h w c"]]) -> Float[np.ndarray, "n d"]:
        """Features of pictures, which may differ in size."""
        return collect(extract(self.network, pictures, BATCH))

    @property
    def facts(self) -> dict[str, str]:
        """What belongs beside its figures."""
        return {"network": f"{self.network.name} {self.network.hash[:8]}", "resize": self.network.resize}
