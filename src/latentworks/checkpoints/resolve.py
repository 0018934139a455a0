"""From what a person types to a model folder: a bundled name, a model folder, or a run folder."""

from importlib.resources import files
from pathlib import Path

from latentworks.checkpoints.native import is_model_folder
from latentworks.config import nearest

__all__ = ["bundled", "resolve_model"]


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
