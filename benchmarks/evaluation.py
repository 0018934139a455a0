"""Seconds and peak memory of `lw evaluate` by the number of images: as many are drawn as there are synthetic ones of 64 px to compare with.

The model is a tiny one of random weights, as its time is no matter of measuring: what remains is hashing, features of drawn, real and
reconstructed images by EfficientNet-Lite0, and distances. Each row runs in a process of its own; its memory is the highest resident size,
beside that before anything was measured, and the bytes of the three feature matrices, by which alone it should grow.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import save, table

from latentworks.checkpoints.native import save_folder
from latentworks.first_stage import KLConfig
from latentworks.metrics.card import write_card
from latentworks.metrics.features import Lite0Features
from latentworks.metrics.measurement import Evaluation
from latentworks.metrics.task import Task, Wanted, prepare
from latentworks.model import LatentDiffusion
from latentworks.recipe import build_model
from latentworks.recipes import get_recipe

SIDE, STEPS, MATRICES = 64, 2, 3


def write_model(folder: Path) -> None:
    """Unconditional, f = 4, about a million parameters."""
    first_stage = KLConfig(channels=32, multipliers=(1, 1, 1), blocks=1, latent_channels=3, mid_attention="none")
    unet = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (), "head_channels": 16}
    recipe = get_recipe("openmoji-64").replace(
        name="tiny", data={"size": SIDE}, unet=unet, conditioners=(), first_stage=first_stage.model_dump(), sampling={"steps": STEPS}
    )
    torch.manual_seed(0)
    model = build_model(recipe)
    assert isinstance(model, LatentDiffusion)
    model.first_stage.set_statistics(torch.zeros(model.first_stage.channels), torch.ones(()))
    save_folder(folder, model, recipe)


def write_images(folder: Path, n: int) -> None:
    """Coloured squares on noise."""
    folder.mkdir()
    for i in range(n):
        random = np.random.default_rng(i)
        pixels = random.integers(0, 64, (SIDE, SIDE, 3), dtype=np.uint8)
        y, x, side = random.integers(0, SIDE // 2, 3)
        pixels[y : y + side, x : x + side] = random.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i:06}.png")


def peak() -> float:
    """The highest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(folder: Path, n: int) -> dict[str, float]:
    """Evaluate in this process; the card is written to the folder."""
    network = Lite0Features()
    before, start = peak(), time.perf_counter()
    for event in prepare(folder / "model", folder / str(n), Wanted(n=n, split="all"), network):
        if isinstance(event, Task):
            task = event
    prepared = time.perf_counter() - start
    for figures in task.events:
        if isinstance(figures, Evaluation):
            write_card(task.card.replace(measurements=figures.measurements, notes=figures.notes), folder / f"{n}.json")
    matrices = MATRICES * n * network.dim * np.dtype(np.float32).itemsize
    return {
        "n": n, "seconds": time.perf_counter() - start, "hashing_seconds": prepared, "before_bytes": before, "peak_bytes": peak(),
        "features_bytes": matrices,
    }  # fmt: skip


def run_apart(folder: Path, n: int) -> dict[str, float]:
    """The same in a fresh process."""
    write_images(folder / str(n), n)
    done = subprocess.run([sys.executable, __file__, "--row", str(folder), str(n)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, nargs="+", default=[1000, 2000, 4000, 10_000], help="images, a row for each number")
    parser.add_argument("--row", nargs=2, metavar=("FOLDER", "N"), help="measure N images in this process, print the row as JSON")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(run(Path(options.row[0]), int(options.row[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model")
        rows = [run_apart(Path(name), n) for n in options.n]
    lines = []
    for last, row in zip([None, *rows], rows, strict=False):
        grown, wider = ((row[key] - (last or row)[key]) for key in ("peak_bytes", "features_bytes"))
        peaks = [f"{row[key] / 1e6:,.0f} MB" for key in ("features_bytes", "before_bytes", "peak_bytes")]
        lines.append([f"{row['n']:,}", f"{row['seconds']:.0f}", *peaks, f"{grown / wider:.2f} x" if wider else ""])
    print(table(["images", "seconds", "feature matrices", "memory before", "peak", "growth, times that of the matrices"], lines))
    print("\nwritten to", save("evaluation", rows, what=f"lw evaluate at {SIDE} px, a tiny model of {STEPS} steps, EfficientNet-Lite0"))


if __name__ == "__main__":
    main()
