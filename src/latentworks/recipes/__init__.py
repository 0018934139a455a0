"""Named recipes. Adding one is a function in a file here and a line in `RECIPES` (or in the table of its file, which is part of it)."""

from collections.abc import Callable
from pathlib import Path

from latentworks.config import merge, nearest, read_mapping
from latentworks.recipe import Recipe, parse_recipe
from latentworks.recipes import small
from latentworks.recipes.first_stages import FIRST_STAGES
from latentworks.recipes.paper import PAPER
from latentworks.recipes.sweeps import SWEEPS
from latentworks.recipes.tasks import TASKS

__all__ = ["RECIPES", "get_recipe"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "openmoji-64-ae": small.openmoji_64_ae,
    "openmoji-64-ae-vq": small.openmoji_64_ae_vq,
    "openmoji-64-decoder": small.openmoji_64_decoder,
    "openmoji-64-text": small.openmoji_64_text,
    "openmoji-64": small.openmoji_64,
    "openmoji-128": small.openmoji_128,
    "class-64": small.class_64,
    "unconditional-64": small.unconditional_64,
    "class-64-classifier": small.class_64_classifier,
    **TASKS,
    **FIRST_STAGES,
    **PAPER,
    **SWEEPS,
}


def get_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A named recipe or one in a JSON or YAML file, with ``a.b=c`` overrides. Raises: ValueError naming the nearest valid key."""
    if name in RECIPES:
        values = RECIPES[name]().model_dump(mode="json")
    elif Path(name).suffix in (".json", ".yaml", ".yml"):
        values = read_mapping(Path(name))
    else:
        raise ValueError(f"unknown recipe {name!r}: {nearest(name, list(RECIPES))}, or give a .json or .yaml file")
    return parse_recipe(merge(values, overrides or []))
