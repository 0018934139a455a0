"""From what a person types to a model folder: a bundled name, a model folder, or a run folder."""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from latentworks.checkpoints.native import is_model_folder, load_folder
from latentworks.config import nearest
from latentworks.recipe import Model, Recipe

__all__ = ["bundled", "keep_model", "resolve_model"]


def bundled() -> dict[str, Path]:
    """Models that come with the package, by name."""
    folder = Path(str(files("latentworks") / "bundled"))
    return {path.name: path for path in sorted(folder.glob("*")) if is_model_folder(path)} if folder.is_dir() else {}


def resolve_model(name: Path | str) -> Path:
    """The model folder meant by a bundled name, a model folder, or a run folder (its last weights; RUN/best are the best).

    Raises: ValueError saying what was looked for.
    """
    path = Path(name)
    for candidate in (path, path / "model"):
        if is_model_folder(candidate):
            return candidate
    models = bundled()
    if str(name) in models:
        return models[str(name)]
    if path.is_dir():
        way_out = "a model folder has recipe.json and model.safetensors; a run gets one when it stops or ends"
        raise ValueError(f"{path} holds no model: {way_out}")
    known = f"bundled: {nearest(str(name), list(models))}" if models else "and no model is bundled"
    raise ValueError(f"no model {str(name)!r}: no such folder, {known}")


def keep_model(field: str, name: Path | str, device: str) -> tuple[Model, Recipe]:
    """A model that a request names and its recipe, without gradients: loaded once, and anew when its weights have been written since.

    Raises: ValueError with the request's ``field``, as `resolve_model`, and for a folder that is damaged.
    """
    try:
        folder = resolve_model(name)
        return _kept(folder.resolve(), (folder / "model.safetensors").stat().st_mtime_ns, device)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


@lru_cache(maxsize=2)
def _kept(folder: Path, written: int, device: str) -> tuple[Model, Recipe]:
    model, recipe = load_folder(folder)
    return model.to(device).requires_grad_(False), recipe
