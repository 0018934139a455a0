"""Make a bundled model of a trained one: weights in float16, a card with its measured figures and its licence.

With ``--decoder`` a bundle gets another decoder of the same latents; then it is measured, and bundled again with its new figures.

    python reproduction/bundle.py runs/openmoji-64 reproduction/first-model/openmoji-64.json openmoji
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.metrics.measurement import Measurement
from latentworks.model import LatentDiffusion
from latentworks.preparation import load_first_stage

FRONT = "---\nlibrary_name: latentworks\npipeline_tag: text-to-image\nlicense: cc-by-sa-4.0\n---\n"
LIMITS = """
## What it is for, and what not

It shows what the software does: small emoji-like pictures from names such as "woman astronaut with dark skin tone". It learned from 3,667
pictures on two processor cores in little more than an hour, both stages; its decoder then learned to see past the diffusion model's errors.
That was enough for people: their professions are mostly those asked for, their poses and skin tones often. Things, faces, animals, hearts,
single flags and anything outside the data mostly fail, as each of their names belongs to one picture. The prompts of `lw demo` were chosen
among 24 tried, after looking. Compare its figures with those of its first stage and of real held-out images below, not with published FIDs:
the feature network is another one.
"""


def main() -> None:
    """Write src/latentworks/bundled/NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run, or the bundle itself")
    parser.add_argument("figures", type=Path, help="what `lw evaluate --json` wrote for it")
    parser.add_argument("data", type=Path, help="the folder of images it learned from, whose LICENSE.txt goes along")
    parser.add_argument("--decoder", help="a first stage whose decoder it gets")
    arguments = parser.parse_args()
    folder = resolve_model(arguments.run)
    model, recipe = load_folder(folder)
    assert isinstance(model, LatentDiffusion)
    if arguments.decoder is not None:
        model.first_stage.take_decoder(load_first_stage(arguments.decoder))
    card = (folder / "README.md").read_text().split("---\n", 2)[2]
    facts, attribution = card.split("\n## Training images\n")
    facts = facts.split(LIMITS.strip().splitlines()[0])[0]  # of a bundle only what a run's card has
    measured = json.loads(arguments.figures.read_text())["measurements"]
    lines = [f"- {Measurement(**{**row, 'interval': row['interval'] and tuple(row['interval'])})}" for row in measured]
    figures = "\n".join(lines)
    text = f"{FRONT}{facts.rstrip()}\n{LIMITS}\n## Measured (`lw evaluate`)\n\n{figures}\n\n## Training images\n{attribution}"
    target = Path(__file__).parents[1] / "src" / "latentworks" / "bundled" / recipe.name
    save_folder(target, model, recipe, text, torch.float16)
    shutil.copy(arguments.data / "LICENSE.txt", target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
