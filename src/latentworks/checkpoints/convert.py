"""From any model file or folder we know to a model with its recipe, and from there to any layout we can write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latentworks.checkpoints.compvis import read_compvis
from latentworks.checkpoints.compvis_save import save_compvis
from latentworks.checkpoints.diffusers import read_diffusers
from latentworks.checkpoints.diffusers_save import save_diffusers
from latentworks.checkpoints.imported import Imported, recipe_of
from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import bundled, resolve_model
from latentworks.checkpoints.vocabulary import read_tokenizer
from latentworks.config import nearest
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.recipe import NOUNS, DiffusionRecipe, Model, Recipe

__all__ = ["LAYOUTS", "Opened", "open_model", "write_model"]

LAYOUTS = ("native", "compvis", "diffusers")


class Opened(NamedTuple):
    """A model, the recipe that builds it, and lines on what was left out or taken otherwise."""

    model: Model
    recipe: Recipe
    notes: tuple[str, ...] = ()


def open_model(
    source: str,
    config: Path | None = None,
    ema: bool = True,
    settings: Mapping[str, Any] | None = None,
    vocabulary: Path | None = None,
    offline: bool = False,
) -> Opened:
    """A model by the authors' file, a diffusers folder, a model or run folder, a bundled name, or the hub id of a diffusers model.

    ``config``, ``ema``, ``settings`` and ``vocabulary`` are about the authors' files, see `load_compvis`. ``offline``: ask no hub.
    Raises: ValueError when it is none of these, cannot be read, or an argument does not go with it.
    """
    path = Path(source)
    if path.is_file():
        tokenizer = None if vocabulary is None else read_tokenizer(vocabulary)
        return _described(read_compvis(path, config, ema, tokenizer, settings), path.stem)
    given = {"--config": config is not None, "--raw": not ema, "--set": bool(settings), "--vocabulary": vocabulary is not None}
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option}: it is about the authors' checkpoint files, and {source} is no file")
    hub = not path.exists() and source.count("/") == 1 and source not in bundled()
    if hub or (path / "model_index.json").is_file() or ((path / "config.json").is_file() and not (path / "recipe.json").is_file()):
        return _described(read_diffusers(source, offline), path.name)
    return Opened(*load_folder(resolve_model(source)))


def _described(imported: Imported, name: str) -> Opened:
    return Opened(imported.model, recipe_of(imported.model, name, imported.size), imported.notes)


def write_model(opened: Opened, out: Path, layout: str, source: str = "") -> list[str]:
    """Write a model: "native", a model folder; "compvis", a ``.ckpt`` or ``.safetensors`` with its YAML; "diffusers", a folder.

    ``source``: where it came from, for the card. Returns: lines on what the layout does not say.
    Raises: ValueError, with nothing written, when ``out`` is taken or the layout has no place for this model.
    """
    model, recipe, _ = opened
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} is unknown: {nearest(layout, list(LAYOUTS))}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} is there already: give another name, or remove it")
    size = recipe.data.out_size
    if layout == "native":
        save_folder(out, model, recipe, _card(opened, source))
        return []
    if isinstance(model, NoisyClassifier):
        raise ValueError(f"layout: {layout} has no place for a classifier of noisy latents: use native")
    if layout == "compvis":
        return save_compvis(model, out, size)
    save_diffusers(model, out, size, recipe.sampling.spacing if isinstance(recipe, DiffusionRecipe) else "leading")
    return []


def _card(opened: Opened, source: str) -> str:
    """The README of a converted model."""
    what = f"A {NOUNS[opened.recipe.kind]}"
    size = opened.recipe.data.out_size
    lines = ["---", "library_name: latentworks", "---", "", f"# {opened.recipe.name}", "", f"{what} for images of {size} px, converted"]
    lines[-1] += f" from `{Path(source).name}` with Latentworks. How it was trained is not known here; its licence is that of its source."
    lines += ["", *(f"- {note}" for note in opened.notes)] if opened.notes else []
    return "\n".join(lines) + "\n"
