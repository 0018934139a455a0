"""Convolutional sampling with and without the latent's statistics (the paper's Fig. 15): what becomes of pictures beyond the training size.

Two models of the recipe `scenes-unconditional` learn from 64 px crops in the latents of one first stage, from the same random weights, with
the same noise and number of steps. One knows the latents' statistics, so they have unit variance; to the other the first stage says mean 0
and deviation 1, so it takes them as they are: at every step its signal is Var(z) times as strong beside the noise, and what goes where is
settled early. Both draw at the training size, at twice and at four times that. The figure is the Fréchet distance (EfficientNet-Lite0)
between crops of the training size from what was drawn and from held-out scenes: lower is better. Also written: results/latent_scale.png.

    python benchmarks/latent_scale.py --data scenes --runs runs/latent-scale
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from record import RESULTS, save, table
from restoration import Pictures, drawn, images, pipeline

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.data.dataset import Extras
from latentworks.first_stage import FirstStage
from latentworks.grids import save_sheet, sheet
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.recipe import DiffusionRecipe
from latentworks.recipes import get_recipe
from latentworks.request import SampleRequest
from latentworks.runs import Progress, RunRequest, train_run

SIDE, SEED = 64, 0
SCALES = (1, 2, 4)


def squares(pictures: Pictures, n: int, random: np.random.Generator) -> UInt8[np.ndarray, "n s s 3"]:
    """``n`` squares of SIDE pixels, from anywhere in the pictures, which take turns."""
    found = []
    for i in range(n):
        image = pictures[i % len(pictures)]
        y, x = (int(random.integers(side - SIDE + 1)) for side in image.shape[:2])
        found.append(image[y : y + SIDE, x : x + SIDE])
    return np.stack(found)


def unscaled(name: str, folder: Path) -> tuple[Path, float]:
    """A copy of a first stage that says nothing of its latents, and the deviation they have."""
    first_stage, recipe = load_folder(resolve_model(name))
    assert isinstance(first_stage, FirstStage)
    std = float(first_stage.std)
    first_stage.set_statistics(torch.zeros(first_stage.channels), torch.ones(()))
    save_folder(folder, first_stage, recipe)
    return folder, std


def measured(recipe: DiffusionRecipe, stages: dict[str, str], options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """A row for each size and model, and one of its pictures."""
    network, random = Lite0Features(), np.random.default_rng(SEED)
    scenes = images(options.data, recipe, Extras(), options.n, "held_out", SEED, 2 * SIDE).pixels
    real = collect(extract(network, squares(scenes, options.n, random)))
    for name, stage in stages.items():
        run = options.runs / name.replace(" ", "-")
        for event in train_run(RunRequest(recipe, options.data, run, stage)):
            print(event.line() if isinstance(event, Progress) else event.text, flush=True)
        for scale in SCALES:
            request = SampleRequest(sampler="ddim", steps=options.steps, seed=SEED, batch=16)
            pictures = drawn(pipeline(str(run), scale * SIDE), lambda rows: {}, -(-options.n // scale**2), request)
            distance = frechet_distance(collect(extract(network, squares(pictures, options.n, random))), real)
            row = {"size": scale * SIDE, "statistics": name, "distance": round(distance, 1), "pictures": len(pictures)}
            yield row, Image.fromarray(pictures[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of scenes of 128 px")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--first-stage", default="models/scenes-ae", help="default: models/scenes-ae")
    parser.add_argument("--train-steps", type=int, default=2500, help="of each model (default: 2500)")
    parser.add_argument("-n", type=int, default=500, help="squares compared at each size (default: 500)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: 25)")
    options = parser.parse_args()
    recipe = get_recipe("scenes-unconditional", [f"train.steps={options.train_steps}"])
    assert isinstance(recipe, DiffusionRecipe)
    copy, std = unscaled(options.first_stage, options.runs / "unscaled-ae")
    found = list(measured(recipe, {"stored": options.first_stage, "none": str(copy)}, options))
    found.sort(key=lambda pair: pair[0]["size"])
    shown = [(f"{row['size']} px, statistics: {row['statistics']}", picture) for row, picture in found]
    large = [(text, picture.resize((SCALES[-1] * SIDE,) * 2, Image.Resampling.NEAREST)) for text, picture in shown]
    save_sheet(RESULTS / "latent_scale.png", sheet([picture for _, picture in large], [text for text, _ in large], columns=2))
    rows = [row for row, _ in found]
    print(table(["size", "statistics", "distance"], [[str(row["size"]), row["statistics"], f"{row['distance']:.1f}"] for row in rows]))
    facts = {"std": round(std, 3), "train_steps": options.train_steps, "n": options.n, "steps": options.steps}
    print("\nwritten to", save("latent_scale", rows, **facts))


if __name__ == "__main__":
    main()
