"""Make small committed models of trained runs: weights in float16, with their cards, in models/NAME.

python reproduction/task_models.py runs/scenes-ae runs/scenes-map ...
"""

import argparse
from pathlib import Path

import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model

LIMIT = 8e6
LICENCE = "\nThese weights are under CC BY-SA 4.0, as the emoji are.\n"


def main() -> None:
    """Write models/NAME for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    for run in parser.parse_args().runs:
        folder = resolve_model(run)
        model, recipe = load_folder(folder)
        card = (
            (folder / "README.md")
            .read_text(encoding="utf-8")
            .replace("library_name: latentworks\n", "library_name: latentworks\nlicense: cc-by-sa-4.0\n", 1)
        )
        target = Path(__file__).parents[1] / "models" / recipe.name
        save_folder(target, model, recipe, card.rstrip() + "\n" + LICENCE, torch.float16)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{target.relative_to(target.parents[1])}: {size / 1e6:.1f} MB{'' if size <= LIMIT else ', more than 8 MB'}")


if __name__ == "__main__":
    main()
