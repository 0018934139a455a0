"""Make a bundled model of a trained one: weights in float16, a card with its measured figures, its audit and its licence.

The card's tables of captions and of what was compared before the run are those of `benchmarks/results`. With ``--decoder`` a bundle
gets another decoder of the same latents. A bundle is measured in float16 and bundled again with its new figures; it draws with the
settings that its recipe has now.

    python reproduction/bundle.py runs/openmoji-64 reproduction/bundled-model/openmoji-64.json openmoji
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.metrics.card import read_card
from latentworks.model import LatentDiffusion
from latentworks.preparation import load_first_stage
from latentworks.recipes import get_recipe

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FRONT = "---\nlibrary_name: latentworks\npipeline_tag: text-to-image\nlicense: cc-by-sa-4.0\n---\n"
LIMITS = """
## What it is for, and what not

It shows what the software does: small emoji-like pictures from names such as "woman astronaut with dark skin tone". It learned from 3,667
pictures on two processor cores, its first stage in about 18 minutes, the rest in about 70; its decoder learned for another 45 to see past
what the diffusion model gets wrong. It knows most emoji by the names it read, largely by heart: the audit below says how many of its
samples are copies. Other names of the same emoji, people in a skin tone it never saw them in, and anything outside the data often fail.
Compare its figures with those of its first stage and of real held-out images below, not with published FIDs: the feature network is another
one.
"""

CAPTIONS = """## Does it draw what is asked for (`benchmarks/captions.py`)

Whether the nearest of all real emoji, by the features of the network above less their mean, is the one that was named, or one of the five
nearest is: for captions it trained on ("known"), for other names of the same emoji ("unused"); and for people in skin tones that training
never showed, whether it is this person, in this tone. These features see little of colour, so "tone by colour" looks at that of the skin.
"""
COMPARISON = """## What was compared before (`benchmarks/comparison.py`)

One change each of the first recipe with Muon ("base": text transformer of 4 layers, v, first stage KL, f = 4, 4 channels), 30 minutes, one
core each, one seed. Distances of 500 samples, which are higher than those of more; captions as above, fewer.
"""


def measured(figures: Path) -> str:
    """The card's sections on what was measured of this model, and on the way to it."""
    sections = [read_card(figures).markdown().replace("# Evaluation of", "## Measured: `lw evaluate` of").replace("\n## ", "\n### ")]
    for path, introduction in ((RESULTS / "captions.json", CAPTIONS), (RESULTS / "comparison.json", COMPARISON)):
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
        lines = ["| " + " | ".join(line) + " |" for line in (columns, [":--"] + ["--:"] * (len(columns) - 1), *cells)]
        sections += ["\n".join([introduction, *lines]) + "\n"] if rows else []
    return "\n".join(sections)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
    recipe = recipe.replace(sampling=get_recipe(recipe.name).sampling.model_dump())
    if arguments.decoder is not None:
        model.first_stage.take_decoder(load_first_stage(arguments.decoder))
    card = (folder / "README.md").read_text().split("---\n", 2)[2]
    facts, attribution = card.split("\n## Training images\n")
    facts = facts.split(LIMITS.strip().splitlines()[0])[0]  # of a bundle only what a run's card has
    text = f"{FRONT}{facts.rstrip()}\n{LIMITS}\n{measured(arguments.figures)}\n## Training images\n{attribution}"
    target = Path(__file__).parents[1] / "src" / "latentworks" / "bundled" / recipe.name
    save_folder(target, model, recipe, text, torch.float16)
    shutil.copy(arguments.data / "LICENSE.txt", target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
