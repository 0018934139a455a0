"""Our own files: model folders and training states. Written to a staged folder, manifest last, one rename; never a pickle."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentworks.checkpoints.safetensors_file import write_safetensors
from latentworks.checkpoints.tensors import load_weights, read_tensors, without_weights
from latentworks.model import LatentDiffusion
from latentworks.recipe import Model, Recipe, build_model, read_recipe
from latentworks.staging import staged

__all__ = ["KEEP", "is_model_folder", "load_folder", "load_newest_state", "read_assets", "save_folder", "save_state", "weights_hash"]

KEEP = 2
"""Training states kept: the newest, and the one before it to fall back to."""


def save_folder(folder: Path, model: Model, recipe: Recipe, card: str = "", dtype: torch.dtype | None = None) -> None:
    """Write a model folder: recipe.json, model.safetensors, conditioners/I/FILE, README.md.

    ``dtype`` (e.g. float16) shrinks the weights but not the latent statistics. Raises: ValueError if it cannot be written.
    """
    with staged(folder, replace=True) as path:
        tensors = model.state_dict()
        shrunk = [key for key, value in tensors.items() if value.is_floating_point() and not key.endswith(("mean", "std"))]
        write_safetensors(path / "model.safetensors", tensors, {"format": "latentworks"}, dict.fromkeys(shrunk, dtype) if dtype else None)
        recipe.save(path / "recipe.json")
        for index, conditioner in enumerate(model.conditioners if isinstance(model, LatentDiffusion) else ()):
            for name, text in conditioner.assets().items():  # type: ignore[operator]
                target = path / "conditioners" / str(index) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
        if card:
            (path / "README.md").write_text(card, encoding="utf-8")


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model of ours."""
    return (path / "recipe.json").is_file() and (path / "model.safetensors").is_file()


def weights_hash(folder: Path) -> str:
    """sha256 of a model folder's weights, by which a card or an audit says which model it is of."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_folder(folder: Path) -> tuple[Model, Recipe]:
    """A model in evaluation mode, float32, and its recipe. Raises: ValueError naming what is missing or does not fit."""
    if not is_model_folder(folder):
        raise ValueError(f"{folder} is no model folder: it must hold recipe.json and model.safetensors")
    recipe = read_recipe(folder / "recipe.json")
    with without_weights():
        model = build_model(recipe, read_assets(folder))
    try:
        tensors = read_tensors(folder / "model.safetensors")
    except ValueError as error:
        raise ValueError(f"{error}; copy or train the model again") from None
    try:
        load_weights(model, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: weights and recipe.json do not belong together: {error}") from None
    return model.eval(), recipe


def read_assets(folder: Path) -> dict[int, dict[str, str]]:
    """The conditioners' files. Raises: ValueError naming one that is no JSON, all there is."""
    assets: dict[int, dict[str, str]] = {}
    for file in sorted(folder.glob("conditioners/*/*.json")):
        try:
            text = file.read_text(encoding="utf-8")
            json.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); copy or train the model again") from None
        if file.parent.name.isdecimal():
            assets.setdefault(int(file.parent.name), {})[file.name] = text
    return assets


def save_state(run: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    """Write a training state as RUN/checkpoints/step-N, manifest last; kept are the newest `KEEP` up to this one.

    Later ones belong to a run that was given up, and what a killed save left behind is of no use either.
    """
    folder = run / "checkpoints" / f"step-{step:09d}"
    with staged(folder, replace=True) as path:
        write_safetensors(path / "state.safetensors", tensors)
        size = (path / "state.safetensors").stat().st_size
        (path / "manifest.json").write_text(json.dumps({"step": step, "size": size, "blake2b": _digest(path / "state.safetensors")}))
    kept = [state for state in _states(run) if state.name <= folder.name][-KEEP:]
    for other in (*_states(run), *folder.parent.glob(".step-*")):
        if other not in kept:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def load_newest_state(run: Path) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The newest state whose manifest agrees with its file (None if there is none), and a line for each newer one, which is removed."""
    complaints: list[str] = []
    for folder in reversed(_states(run)):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            file = folder / "state.safetensors"
            if file.stat().st_size == manifest["size"] and _digest(file) == manifest["blake2b"]:
                return read_tensors(file), complaints
            complaints.append(f"{folder.name} is damaged and removed, going back to the save before it")
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            complaints.append(f"{folder.name} is incomplete and removed, going back to the save before it")
        shutil.rmtree(folder, ignore_errors=True)  # else it would count as one of the kept
    return None, complaints


def _states(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
