"""Tiny things to train and sample in seconds: folders of small images, reduced recipes, models of random weights, and `lw` in process."""

import json
import resource
import sys
from contextlib import contextmanager

import numpy as np
import tifffile
import torch
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.cli import main
from latentworks.conditioners import train_tokenizer
from latentworks.first_stage import build_first_stage
from latentworks.recipe import build_model
from latentworks.recipes import get_recipe

WORDS = ("red", "green", "blue", "grey")

FIRST_STAGE = [
    "data.size=20", "data.crop_size=16", "first_stage.channels=16", "first_stage.multipliers=[1, 1]", "first_stage.latent_channels=2",
    "objective.perceptual={kind: none}", "objective.discriminator.channels=8", "objective.discriminator.layers=1",
    "train.batch=4", "train.steps=8", "train.warmup=0", "intervals.log=1", "intervals.checkpoint=100", "intervals.evaluate=100",
]  # fmt: skip
DIFFUSION = [
    "data.size=16", "unet.channels=16", "unet.multipliers=[1, 2]", "unet.blocks=1", "unet.attention=[2]", "unet.head_channels=16",
    "train.batch=4", "train.steps=8", "train.warmup=0", "intervals.log=1", "intervals.checkpoint=100", "intervals.evaluate=100",
    "sampling.steps=2",
]  # fmt: skip
TEXT = [
    f"conditioners.0.{key}"
    for key in ("width=16", "layers=1", "heads=2", "head_channels=8", "length=6", "vocabulary=300", "neighbours=0", "vector=0", "aligned=0")
]
ALIGNED = ["conditioners.0.vector=64", "conditioners.0.aligned=2"]
"""Of `ldm`: text that has learnt from contrast, as wide as the time embedding."""
ALIGNING = [*ALIGNED, "objective={kind: alignment}"]


def ae(*overrides, name="openmoji-64-ae"):
    """A first-stage recipe, f = 2, 16 px crops of 20 px images."""
    return get_recipe(name, [*FIRST_STAGE, *overrides])


def ldm(*overrides, name="openmoji-64"):
    """A latent recipe for 16 px images."""
    return get_recipe(name, [*DIFFUSION, *(TEXT if name == "openmoji-64" else []), *overrides])


def classifier(*overrides):
    """A classifier's recipe for 16 px images, as large as the UNet of `ldm`."""
    reduced = [f"classifier.{key}" if key.startswith("unet.") else key for key in DIFFUSION if not key.startswith("sampling.")]
    return get_recipe("class-64-classifier", [*reduced, *overrides])


def image_folder(path, n=24, size=20, channels=3, dtype="uint8", captions=False, classes=0, seed=0):
    """Blocks of colour with noise on them; more than 4 channels are .npy, 16 bits .tiff, else .png. The folder."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        folder = path / f"class{i % classes}" if classes else path
        folder.mkdir(parents=True, exist_ok=True)
        blocks = np.kron(rng.random((2, 2, channels)), np.ones((size // 2, size // 2, 1)))
        pixels = (np.clip(blocks + 0.1 * rng.random(blocks.shape), 0, 1) * np.iinfo(dtype).max).astype(dtype)
        if channels > 4:
            np.save(folder / f"{i:02}.npy", pixels)
        elif dtype == "uint16":
            tifffile.imwrite(folder / f"{i:02}.tiff", pixels[..., 0] if channels == 1 else pixels)
        else:
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / f"{i:02}.png")
        if captions:
            (folder / f"{i:02}.txt").write_text(f"{WORDS[i % 4]} {WORDS[i // 4 % 4]} blocks")
    return path


def scenes_folder(path, n=24, size=20, seed=0):
    """A red square and a blue bar on grey, with COCO's boxes and captions and label maps (0 is background). The folder."""
    rng = np.random.default_rng(seed)
    kinds = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
    images, instances, captions = [], [], []
    for name in ("images", "labels"):
        (path / name).mkdir(parents=True)
    for i in range(n):
        pixels, labels = rng.integers(90, 110, (size, size, 3)).astype(np.uint8), np.zeros((size, size), np.uint8)
        images.append({"id": i, "file_name": f"{i:02}.png", "width": size, "height": size})
        for category, (h, w), colour in ((1, (size // 3, size // 3), (220, 30, 30)), (2, (size // 5, size // 2), (30, 30, 220))):
            y, x = int(rng.integers(0, size - h)), int(rng.integers(0, size - w))
            pixels[y : y + h, x : x + w], labels[y : y + h, x : x + w] = colour, category
            instances.append(
                {"id": len(instances), "image_id": i, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )
        captions.append({"id": i, "image_id": i, "caption": "a square and a bar"})
        Image.fromarray(pixels).save(path / "images" / f"{i:02}.png")
        Image.fromarray(labels).save(path / "labels" / f"{i:02}.png")
    (path / "instances.json").write_text(json.dumps({"images": images, "annotations": instances, "categories": kinds}))
    (path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return path


def first_stage_folder(path, *overrides, statistics=True, name="openmoji-64-ae"):
    """A first stage's model folder with random weights; the folder."""
    recipe = ae(*overrides, name=name)
    torch.manual_seed(0)
    model = build_first_stage(recipe.first_stage)
    if statistics:
        model.set_statistics(torch.full((model.channels,), 0.1), torch.tensor(0.3))
    save_folder(path, model, recipe)
    return path


def diffusion_model(*overrides, name="openmoji-64", statistics=(0.1, 0.3)):
    """A latent diffusion model whose weights are all random, also those that start at zero, and its recipe."""
    recipe = ldm(*overrides, name=name).replace(first_stage=ae().first_stage.model_dump())
    tokenizer = {"tokenizer.json": train_tokenizer(["red blocks", "green blocks"], 300).to_str()}
    torch.manual_seed(0)
    model = build_model(recipe, {0: tokenizer})
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else parameter)
    mean, std = statistics
    model.first_stage.set_statistics(torch.full((model.first_stage.channels,), mean), torch.tensor(std))
    return model.eval(), recipe


def lw(monkeypatch, capsys, *arguments):
    """Run the command line in this process; (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["lw", *map(str, arguments)])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@contextmanager
def largest_file(size):
    """A disk that is full after so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ended(steps):
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
