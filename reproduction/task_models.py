"""Make small committed models of trained runs: weights in float16, with their cards, in models/NAME.

With ``--decoder`` the models that are there get another decoder of the same latents, as trained by `scenes-decoder`.

    python reproduction/task_models.py runs/scenes-map runs/scenes-class
    python reproduction/task_models.py models/* --decoder runs/scenes-decoder
"""

import argparse
from pathlib import Path

import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.first_stage import FirstStage
from latentworks.preparation import load_first_stage

LIMIT = 8e6
LICENCE = "\nThese weights are under CC BY-SA 4.0, as the emoji are.\n"


def licensed(card: str) -> str:
    """The card with the licence of the weights, once."""
    if LICENCE in card:
        return card
    return card.replace("library_name: latentworks\n", "library_name: latentworks\nlicense: cc-by-sa-4.0\n", 1).rstrip() + "\n" + LICENCE


def main() -> None:
    """Write models/NAME for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--decoder", type=Path, help="a first stage whose decoder they get")
    options = parser.parse_args()
    for run in options.runs:
        folder = resolve_model(run)
        model, recipe = load_folder(folder)
        if options.decoder is not None:
            (model if isinstance(model, FirstStage) else model.first_stage).take_decoder(load_first_stage(options.decoder))
        target = Path(__file__).parents[1] / "models" / recipe.name
        save_folder(target, model, recipe, licensed((folder / "README.md").read_text(encoding="utf-8")), torch.float16)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{target.relative_to(target.parents[1])}: {size / 1e6:.1f} MB{'' if size <= LIMIT else ', more than 8 MB'}")


if __name__ == "__main__":
    main()
