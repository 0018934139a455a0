"""How long the recipes of the tasks train on this machine: each is begun as `lw train` begins it, and stopped after its first pictures.

A recipe's minutes are those of encoding its images into the latent cache, of its steps at the speed of the first ones, and of held-out
figures and pictures as often as it asks for them. The first stage's are measured with its discriminator at work, which it is for the last
part of its steps only; the layout's on scenes of 48 categories, as 24 cost the same. Recipes that are not named keep the
row of an earlier call, if it is of as many steps. Let nothing else run meanwhile.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, save, table

from latentworks.recipe import ClassifierRecipe, FirstStageRecipe, Recipe
from latentworks.recipes import get_recipe
from latentworks.recipes.tasks import TASKS
from latentworks.runs import Message, Progress, RunRequest, train_run

LOG, STEPS, CLAIM = 10, 50, 40.0
"""Steps between two looks at the clock; steps measured; minutes a recipe may take."""


def begun(name: str) -> Recipe:
    """The recipe, drawing pictures early, and with everything that trains in it at work."""
    settings = [f"intervals.log={LOG}", f"intervals.evaluate={STEPS}"]
    if isinstance(get_recipe(name), FirstStageRecipe):
        settings.append("objective.discriminator_start=0.0")
    return get_recipe(name, settings)


def measure(name: str, data: Path, models: Path, folder: Path) -> dict[str, Any]:
    """Seconds of a recipe's parts, and minutes of the whole."""
    recipe, whole = begun(name), get_recipe(name)
    if isinstance(recipe, FirstStageRecipe):
        given = {"from_model": models / "scenes-ae"}
    else:
        given = {"first_stage": models / ("scenes-class" if isinstance(recipe, ClassifierRecipe) else "scenes-ae")}
    began, seen = time.monotonic(), list[float]()
    for event in train_run(RunRequest(recipe, data, folder / name, **given)):
        if isinstance(event, Progress):
            seen.append(time.monotonic())
        elif isinstance(event, Message) and event.text.startswith("held out"):
            break
    step = (seen[-1] - seen[0]) / (LOG * (len(seen) - 1))
    parts = {"preparation": seen[0] - began - LOG * step, "step": step, "evaluation": time.monotonic() - seen[-1]}
    steps, evaluations = whole.train.steps, whole.train.steps // whole.intervals.evaluate + 1
    seconds = parts["preparation"] + steps * step + evaluations * parts["evaluation"]
    rounded = {f"{part}_seconds": round(value, 3) for part, value in parts.items()}
    return {
        "recipe": name,
        "steps": steps,
        "images_per_second": round(whole.train.batch / step, 1),
        **rounded,
        "minutes": round(seconds / 60, 1),
    }


def rows(names: Sequence[str], folders: dict[str, Path], models: Path) -> Iterator[dict[str, Any]]:
    """A row a recipe; those on the same images share their latents, so that the later ones are prepared sooner."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            row = measure(name, folders.get(name, folders["scenes"]), models, Path(folder))
            print(f"{name}: {row['minutes']} minutes", flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all of the tasks", default=list(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="a folder of scenes of 48 categories")
    parser.add_argument("--single", type=Path, required=True, help="one of single objects, for the classes")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where scenes-ae and scenes-class are (default: models)")
    options = parser.parse_args()
    single = dict.fromkeys(("scenes-class", "scenes-class-vector", "scenes-classifier"), options.single)
    path = RESULTS / "recipe_time.json"
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    earlier = {row["recipe"]: row for row in kept if row["steps"] == get_recipe(row["recipe"]).train.steps}
    timed = {row["recipe"]: row for row in rows(options.recipes, {"scenes": options.data, **single}, options.models)}
    found = [row for _, row in sorted((earlier | timed).items(), key=lambda pair: list(TASKS).index(pair[0]))]
    columns = list(found[0])
    print(table(columns, [[str(row[column]) for column in columns] for row in found]))
    slow = [row["recipe"] for row in found if row["minutes"] > CLAIM]
    print(f"\nin {CLAIM:g} minutes or less: {'all' if not slow else 'all but ' + ', '.join(slow)}")
    print("written to", save("recipe_time", found, limit=CLAIM))


if __name__ == "__main__":
    main()
