"""Reads diffusers folders, pipelines and single models, into ours. The library itself is not needed, nor is anything of a folder run."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from latentworks.checkpoints.diffusers_config import UNetParts, process_config
from latentworks.checkpoints.diffusers_parts import read_first_stage, read_settings, read_unet, read_weights, unet_weights
from latentworks.checkpoints.diffusers_text import PROMPT, frozen_conditioner, joint_conditioner
from latentworks.checkpoints.imported import Imported
from latentworks.checkpoints.tensors import load_weights, without_weights
from latentworks.conditioners import (
    Conditioner,
    FeaturesConditioner,
    FeaturesConfig,
    LabelConditioner,
    LabelConfig,
    LowResConditioner,
    LowResConfig,
    MaskedImageConditioner,
    MaskedImageConfig,
)
from latentworks.config import nearest
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import FirstStage, IdentityConfig, IdentityFirstStage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet

__all__ = ["load_diffusers", "read_diffusers"]

T = TypeVar("T")


class _Pipeline(NamedTuple):
    """Where a pipeline has its first stage, text encoder and tokenizer, and what is joined to its latents."""

    first_stage: str
    text: str | None = None
    tokenizer: str = "tokenizer"
    joins: str | None = None


_STABLE = _Pipeline("vae", "text_encoder", joins="a masked image")
_PIPELINES = {
    "LDMPipeline": _Pipeline("vqvae"),
    "LDMTextToImagePipeline": _Pipeline("vqvae", "bert"),
    "LDMSuperResolutionPipeline": _Pipeline("vqvae", joins="a small image"),
    "StableDiffusionPipeline": _STABLE,
    "StableDiffusionInpaintPipeline": _STABLE,
    "StableDiffusionImg2ImgPipeline": _STABLE,
}


def load_diffusers(folder: str | Path, offline: bool = False) -> LatentDiffusion | FirstStage:
    """A model of a diffusers folder, in evaluation mode, float32.

    An LDMPipeline, LDMTextToImagePipeline, LDMSuperResolutionPipeline or StableDiffusionPipeline (also for inpainting) is a
    `LatentDiffusion` whose latents are scaled as that pipeline scales them. An AutoencoderKL or a VQModel is a first stage with its
    ``scaling_factor`` as statistics. A UNet2DModel or UNet2DConditionModel is a `LatentDiffusion` in its own channels: the first stage does
    nothing, and what the UNet is given comes from ``batch["text_features"]``, ``["label"]``, and ``["low_res"]`` or ``["mask"]``; its
    process is that of ``scheduler/`` inside the folder, else the default one, as a UNet alone says nothing of it.
    ``folder`` may be the id of a model on the hub, which is asked only then, and with ``offline`` never.
    Raises: ValueError in one line, naming the part and the setting, weight or file that is missing or has no counterpart.
    """
    return read_diffusers(folder, offline).model


def read_diffusers(source: str | Path, offline: bool = False) -> Imported:
    """As `load_diffusers`, with the pixels a side the folder names. Raises: ValueError."""
    folder = _folder(source, offline)
    if (folder / "model_index.json").is_file():
        return _read(folder, _pipeline)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no diffusers folder: it has neither model_index.json (a pipeline) nor config.json (a model)")
    name = _read(folder, read_settings).get("_class_name")
    readers = {"AutoencoderKL": _first_stage, "VQModel": _first_stage, "UNet2DModel": _unet, "UNet2DConditionModel": _unet}
    if name not in readers:
        raise ValueError(f"{folder / 'config.json'}: the class {name!r} has no counterpart here: {nearest(str(name), list(readers))}")
    return _read(folder, readers[name])


def _read(folder: Path, reader: Callable[[Path], T]) -> T:
    """What a reader makes of a folder, whose name is put before every complaint."""
    try:
        return reader(folder)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if str(folder) in text else f"{folder}: {text}") from None
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder}: a setting of its config.json has a value of a wrong kind ({error})") from None


def _folder(source: str | Path, offline: bool) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise ValueError(f"{source}: no such folder, and no id of a model on the hub (owner/name)")
    if offline:
        raise ValueError(f"{source}: no such folder, and the hub is not asked when offline: download it first")
    try:
        found = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
        return found if any(found.rglob("*.safetensors")) else Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.bin"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(f"{source}: no such folder, and the hub does not give it: {str(error).splitlines()[0]}") from None


def _first_stage(folder: Path) -> Imported:
    with without_weights():
        model, tensors, given = read_first_stage(folder)
    scale, shift = given.get("scaling_factor", 0.18215), given.get("shift_factor") or 0.0
    if scale is not None:
        model.set_statistics(torch.full((model.channels,), float(shift)), torch.tensor(1 / scale))
    load_weights(model, {"mean": model.mean, "std": model.std} | tensors)
    return Imported(model.eval(), _side(given, 256))


def _pipeline(folder: Path) -> Imported:
    index = read_settings(folder, "model_index.json")
    name = str(index.get("_class_name"))
    if name not in _PIPELINES:
        raise ValueError(f"the pipeline {name} has no counterpart here: {nearest(name, list(_PIPELINES))}")
    parts = _PIPELINES[name]
    scheduler = _read(folder / "scheduler", lambda path: read_settings(path, "scheduler_config.json"))
    process = _read(folder / "scheduler", lambda _: process_config(scheduler))
    with without_weights():
        first_stage, tensors, given = _read(folder / parts.first_stage, read_first_stage)
        unet, weights, settings = _read(folder / "unet", read_unet)
        if unet.classes is not None:
            raise ValueError(f"unet: num_class_embeds: a {name} gives its UNet no class")
        conditioners: list[tuple[Conditioner, dict[str, Tensor]]] = []
        if parts.text is not None:
            conditioners.append(_text(folder, index, parts, unet, weights))
        conditioners += [(conditioner, {}) for conditioner in _joined(unet, parts.joins)]
        scale = given.get("scaling_factor", 0.18215) if parts.joins != "a small image" else 1.0  # that pipeline never scales
        first_stage.set_statistics(torch.zeros(first_stage.channels), torch.tensor(1 / scale))
        model = _assemble(first_stage, tensors, unet, weights, process, conditioners)
    side = _side(settings, 256 // first_stage.factor) * first_stage.factor
    notes = ["the safety checker is left out"] if any(index.get("safety_checker") or []) else []
    if scheduler.get("clip_sample", False) or scheduler.get("thresholding"):
        notes.append("its scheduler clips x0 while drawing, which no sampler of ours does")
    return Imported(model, side // 8 * first_stage.factor if name == "LDMTextToImagePipeline" else side, tuple(notes))


def _text(
    folder: Path, index: Mapping[str, Any], parts: _Pipeline, unet: UNetParts, weights: dict[str, Tensor]
) -> tuple[Conditioner, dict[str, Tensor]]:
    """The text conditioner; a projection behind it, which is the UNet's there, is taken from ``weights``."""
    assert parts.text is not None
    entry = index.get(parts.text)
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    place, tokenizer, length = folder / parts.text, folder / parts.tokenizer, PROMPT if parts.text == "bert" else None

    def read(path: Path) -> tuple[Conditioner, dict[str, Tensor]]:
        settings = read_settings(path)
        encoder = read_weights(path, settings)
        if name == "LDMBertModel" and unet.projection is None:
            return joint_conditioner(settings, encoder, tokenizer, length)
        if library != "transformers":
            raise ValueError(f"the text encoder {library}.{name} has no counterpart here, only those of transformers and LDMBertModel have")
        projection = unet.context if unet.projection else None
        conditioner, tensors = frozen_conditioner(str(name), settings, encoder, tokenizer, length, projection)
        behind = [key for key in weights if key.startswith("encoder_hid_proj.")]
        return conditioner, tensors | {key.replace("encoder_hid_proj", "projection"): weights.pop(key) for key in behind}

    return _read(place, read)


def _joined(unet: UNetParts, what: str | None) -> list[Conditioner]:
    """What is joined to the latents, by the number of channels the UNet takes beside them."""
    masked = [MaskedImageConditioner(MaskedImageConfig(channels=unet.channels, convention="sd"))]
    small: list[Conditioner] = [LowResConditioner(LowResConfig(channels=unet.concat))] if unet.concat else []
    expected = {None: [0], "a masked image": [0, unet.channels + 1], "a small image": [unet.channels]}
    if what in expected and unet.concat not in expected[what]:
        raise ValueError(f"unet: in_channels: {unet.channels + unet.concat} do not go with latents of {unet.channels} in this pipeline")
    return [*masked] if unet.concat == unet.channels + 1 else small


def _unet(folder: Path) -> Imported:
    scheduler = folder / "scheduler"
    process = process_config(read_settings(scheduler, "scheduler_config.json")) if scheduler.is_dir() else ProcessConfig()
    with without_weights():
        unet, weights, settings = read_unet(folder)
        if unet.projection:
            raise ValueError("encoder_hid_dim: a UNet that projects its context is read with its pipeline only")
        conditioners: list[tuple[Conditioner, dict[str, Tensor]]] = []
        if unet.context:
            conditioners.append((FeaturesConditioner(FeaturesConfig(width=unet.context)), {}))
        if unet.classes is not None:
            config = LabelConfig(classes=unet.classes, width=4 * unet.config.channels, route="vector", null=False)
            embedding = {"embedding.weight": weights.pop("class_embedding.weight")} if "class_embedding.weight" in weights else {}
            conditioners.append((LabelConditioner(config), embedding))
        conditioners += [(conditioner, {}) for conditioner in _joined(unet, "anything")]
        first_stage = IdentityFirstStage(IdentityConfig(in_channels=unet.channels))
        model = _assemble(first_stage, {}, unet, weights, process, conditioners)
    notes = () if scheduler.is_dir() else ("a UNet alone says nothing of its diffusion process: the default one is taken",)
    return Imported(model, _side(settings, 64), notes)


def _assemble(
    first_stage: FirstStage, tensors: Mapping[str, Tensor], unet: UNetParts, weights: Mapping[str, Tensor], process: ProcessConfig,
    conditioners: list[tuple[Conditioner, dict[str, Tensor]]],
) -> LatentDiffusion:  # fmt: skip
    """The whole model, filled; ``weights``: the UNet's, by their names."""
    modules = [conditioner for conditioner, _ in conditioners]
    network = UNet(unet.config, unet.channels, LatentDiffusion.sum_gives(modules))
    model = LatentDiffusion(first_stage, network, Process(process), modules)
    filled = {"first_stage.mean": first_stage.mean, "first_stage.std": first_stage.std}
    filled |= {f"first_stage.{key}": value for key, value in tensors.items()}
    filled |= {f"unet.{key}": value for key, value in unet_weights(network, weights).items()}
    for i, (_, own) in enumerate(conditioners):
        filled |= {f"conditioners.{i}.{key}": value for key, value in own.items()}
    load_weights(model, filled)
    return model.eval()


def _side(settings: Mapping[str, Any], default: int) -> int:
    size = settings.get("sample_size")
    size = size[0] if isinstance(size, list) and size else size
    return size if isinstance(size, int) and size > 0 else default
