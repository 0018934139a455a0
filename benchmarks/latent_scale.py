"""Convolutional sampling with and without the latent's statistics (the paper's Fig. 15): what becomes of pictures beyond the training size.

Two unconditional models learn in the bundled first stage's latent space from crops of scikit-image's photographs, with the same net, data,
noise and number of steps. One has the stored statistics, so its latents have unit variance; the other takes latents as they are, as if
there were no statistics: at every step its signal is Var(z) times as strong beside the noise, so what goes where is settled early. Both
draw at the training size, at twice and at four times that. The figure is the Fréchet distance (EfficientNet-Lite0) between crops of the
training size from what was drawn and from the photographs: lower is better. Also written: results/latent_scale.png.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from record import RESULTS, save, table
from torch import Tensor

from latentworks.data.transforms import from_tensor, to_tensor
from latentworks.diffusion.samplers import ddim
from latentworks.first_stage import FirstStage
from latentworks.grids import save_sheet, sheet
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.model import LatentDiffusion
from latentworks.pipeline import load_model
from latentworks.random import randn_like_per_image
from latentworks.recipe import DiffusionRecipe, build_diffusion, build_objective
from latentworks.recipes import get_recipe
from latentworks.train import Stepped, make_accelerator, train
from latentworks.types import Batch, Cond

PHOTOGRAPHS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg")
SIDE, SHORTER, CROPS, SEED = 64, 256, 2048, 0
SCALES = (1, 2, 4)
CROP = UInt8[np.ndarray, "n h w 3"]


class Latents:
    """Posterior moments of crops, drawn anew for every step: in place of a latent cache."""

    def __init__(self, raw: Float[Tensor, "n r h w"]) -> None:
        self.raw = raw

    def indices_for(self, step: int, batch: int) -> list[int]:
        random = np.random.default_rng((SEED, step))
        return [int(i) for i in random.integers(len(self.raw), size=batch)]

    def batch(self, indices: list[int], step: int) -> Batch:
        return {"index": torch.tensor(indices), "raw": self.raw[indices]}


def crops(n: int, random: np.random.Generator) -> CROP:
    """Squares of SIDE pixels from anywhere in the photographs, whose shorter side is SHORTER."""
    folder, photographs = Path(skimage.__file__).parent / "data", []
    for name in PHOTOGRAPHS:
        image = Image.open(folder / name).convert("RGB")
        image.thumbnail((10_000, SHORTER) if image.width > image.height else (SHORTER, 10_000), Image.Resampling.BICUBIC)
        photographs.append(np.asarray(image))
    return np.stack([_square(photographs[i], random) for i in random.integers(len(photographs), size=n)])


def _square(image: UInt8[np.ndarray, "h w 3"], random: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
    y, x = (int(random.integers(side - SIDE + 1)) for side in image.shape[:2])
    return image[y : y + SIDE, x : x + SIDE]


def training(recipe: DiffusionRecipe, statistics: bool, raw: Tensor) -> tuple[LatentDiffusion, Iterator[Stepped]]:
    """A model with fresh weights, the same for both, and its loop."""
    first_stage: FirstStage = load_model("openmoji-64").first_stage
    if not statistics:
        first_stage.set_statistics(torch.zeros(first_stage.channels), torch.ones(()))
    torch.manual_seed(SEED)
    model = build_diffusion(recipe, first_stage, [])
    return model, train(build_objective(recipe, model), Latents(raw), recipe.train, accelerator=make_accelerator(recipe.train))


@torch.no_grad()
def draw(model: LatentDiffusion, scale: int, n: int, steps: int) -> CROP:
    """``n`` pictures of ``scale`` times the training size, convolutionally: the net sees a larger latent than it was trained on."""
    model.eval()
    drawn = []
    for start in range(0, n, 4):
        seeds = list(range(start, min(start + 4, n)))
        side = scale * SIDE // model.first_stage.factor
        noise = randn_like_per_image("start", seeds)(torch.empty(len(seeds), model.first_stage.channels, side, side))
        steps_taken = ddim(lambda x, t: model.predict(x, t, Cond()), noise, model.process, model.process.timesteps(steps), torch.randn_like)
        *_, last = steps_taken
        drawn.append(from_tensor(model.first_stage.decode(last.x)))
    return np.concatenate(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for both models together (default: 20)")
    parser.add_argument("-n", type=int, default=500, help="crops compared at each size (default: 500)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: 25)")
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    recipe = get_recipe("unconditional-64", ["train.batch=16", "train.decay=constant", "train.steps=1000000"])
    assert isinstance(recipe, DiffusionRecipe)
    bundled = load_model("openmoji-64").first_stage
    with torch.no_grad():
        raw = torch.cat([bundled.encode_raw(to_tensor(part)) for part in np.array_split(crops(CROPS, random), CROPS // 16)])
    models, loops = zip(*(training(recipe, statistics, raw) for statistics in (True, False)), strict=True)
    began = time.monotonic()
    while time.monotonic() - began < 60 * options.minutes:
        last = [next(loop) for loop in loops]  # in lockstep: the same number of steps each
    for stepped in last:
        stepped.state.averages["model"].swap()
    network = Lite0Features()
    real = collect(extract(network, crops(options.n, random)))
    rows, pictures = [], []
    for scale in SCALES:
        for name, model in zip(("stored statistics", "none"), models, strict=True):
            images = draw(model, scale, -(-options.n // scale**2), options.steps)
            parts = [_square(images[i % len(images)], random) for i in range(options.n)]
            distance = frechet_distance(collect(extract(network, parts)), real)
            rows.append({"size": scale * SIDE, "statistics": name, "distance": round(distance, 1), "pictures": len(images)})
            pictures.append((f"{scale * SIDE} px, {name}", Image.fromarray(images[0])))
    shown = [(text, image.resize((SCALES[-1] * SIDE,) * 2, Image.Resampling.NEAREST)) for text, image in pictures]
    save_sheet(RESULTS / "latent_scale.png", sheet([image for _, image in shown], [text for text, _ in shown], columns=2))
    print(table(["size", "statistics", "distance"], [[str(row["size"]), row["statistics"], f"{row['distance']:.1f}"] for row in rows]))
    path = save("latent_scale", rows, std=round(float(bundled.std), 3), training_steps=last[0].step, **vars(options))
    print("\nwritten to", path)


if __name__ == "__main__":
    main()
