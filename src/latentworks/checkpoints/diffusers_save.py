"""Writes our models as diffusers folders that ``from_pretrained`` opens and a pipeline samples, without the library."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentworks.checkpoints.diffusers_config import first_stage_settings, process_settings, unet_settings
from latentworks.checkpoints.diffusers_keys import first_stage_places, to_theirs, unet_places
from latentworks.checkpoints.diffusers_parts import VERSION, Part, write_part
from latentworks.checkpoints.diffusers_text import PROMPT, frozen_part, joint_part, tokenizer_files
from latentworks.checkpoints.fold import FOLDED, fold
from latentworks.conditioners import FrozenTextConditioner, LabelConditioner, LowResConditioner, MaskedImageConditioner, TextConditioner
from latentworks.diffusion.process import Spacing
from latentworks.first_stage import FirstStage, IdentityFirstStage, KLAutoencoder, VQAutoencoder
from latentworks.model import LatentDiffusion
from latentworks.staging import staged

__all__ = ["save_diffusers"]

_ALONE = "its first stage alone can be saved (model.first_stage)"


def save_diffusers(
    model: LatentDiffusion | FirstStage,
    folder: str | Path,
    size: int = 256,
    spacing: Spacing = "leading",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model as a diffusers folder: the pipeline follows from what the model is.

    Without condition an LDMPipeline, with a small image an LDMSuperResolutionPipeline; with text an LDMTextToImagePipeline (which cuts and
    pads every prompt to 77 tokens) where the text transformer was trained jointly on prompts of 77, else a StableDiffusionPipeline, or with
    a masked image its inpainting one; a model without tokenizer needs one passed to ``from_pretrained``. A first stage alone becomes an
    AutoencoderKL or a VQModel, a model without first stage a single UNet with its scheduler in ``scheduler/``. These pipelines know one
    scale of the latents at most: means are folded into the weights, and what these were is kept in a file beside them that only
    `load_diffusers` reads.
    ``size``: pixels a side that it draws. ``spacing`` of DDIM's steps, see `Process.timesteps`. ``dtype`` of the weights on disk.
    Raises: ValueError in one line saying what diffusers has no counterpart of, before anything is written; or if it cannot be written.
    """
    parts = _first_stage_alone(model, size) if isinstance(model, FirstStage) else _model(model, size, spacing)
    with staged(Path(folder)) as path:
        for name, part in parts.items():
            write_part(path / name, part, dtype)


def _first_stage_alone(model: FirstStage, size: int) -> dict[str, Part]:
    if not isinstance(model, KLAutoencoder | VQAutoencoder):
        raise ValueError("first_stage: the identity has no weights, there is nothing to save")
    return {"": _first_stage(model, size)}


def _first_stage(model: KLAutoencoder | VQAutoencoder, size: int, scaled: bool = True) -> Part:
    """``scaled``: whether whoever uses it divides by ``scaling_factor``; else, or where there are means, the statistics are folded."""
    scale: float | None = 1 / float(model.std) if model.normalised else None  # none: not known yet
    tensors = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std", "quantizer.counts")}
    kept: dict[str, Tensor] = {}
    if model.normalised and (bool(model.mean.any()) or not scaled):
        kept = {key: tensors[key] for key in FOLDED if key in tensors} | {"mean": model.mean, "std": model.std}
        tensors, scale = tensors | fold(tensors, model.mean, model.std), 1.0
    part = Part.of(first_stage_settings(model, scale, size), to_theirs(tensors, first_stage_places(model.config)))
    return part._replace(kept=kept)


def _model(model: LatentDiffusion, size: int, spacing: Spacing) -> dict[str, Part]:
    scheduler = Part({"scheduler_config.json": json.dumps(process_settings(model.process.config, spacing), indent=2) + "\n"})
    first_stage = model.first_stage
    if size < 1 or size % (step := first_stage.factor * model.unet.config.factors[-1]):
        raise ValueError(f"size: {size} is not possible with this model: use a multiple of {step}")
    if isinstance(first_stage, IdentityFirstStage):
        return {"": _unet_alone(model, size), "scheduler": scheduler}
    assert isinstance(first_stage, KLAutoencoder | VQAutoencoder)
    if not first_stage.normalised:
        raise ValueError("first_stage: its latent statistics are not known: finish its training or call set_statistics")
    name = _pipeline_name(model)
    stable = name.startswith("StableDiffusion")
    place = "vae" if stable else "vqvae"
    latent = size // first_stage.factor
    if name == "LDMTextToImagePipeline":  # it multiplies this by f and divides by 8, whatever f is
        if 8 * latent % first_stage.factor:
            raise ValueError(f"size: LDMTextToImagePipeline cannot draw {size} pixels at f = {first_stage.factor}: use a larger power of 2")
        latent = 8 * latent // first_stage.factor
    projection, texts = _text(model, "text_encoder" if stable else "bert")
    parts = {
        place: _first_stage(first_stage, size, scaled=name != "LDMSuperResolutionPipeline"),
        "unet": _unet(model, latent, None, projection),
        "scheduler": scheduler,
        **{part: content for part, (_, content) in texts.items()},
    }
    library: dict[str, Any] = {part: ["diffusers", json.loads(parts[part].texts["config.json"])["_class_name"]] for part in (place, "unet")}
    index = {"_class_name": name, "_diffusers_version": VERSION, **library, "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {part: kind for part, (kind, _) in texts.items()}
    if model.conditioners and name != "LDMSuperResolutionPipeline" and "tokenizer" not in texts:
        index["tokenizer"] = [None, None]  # this model came without: give one to from_pretrained
    if stable:
        none = [None, None]
        index |= {"safety_checker": none, "feature_extractor": none, "image_encoder": none, "requires_safety_checker": False}
    return {"": Part({"model_index.json": json.dumps(index, indent=2) + "\n"}), **parts}


def _pipeline_name(model: LatentDiffusion) -> str:
    """The pipeline that draws with this model. Raises: ValueError naming a condition no pipeline has."""
    kinds = [str(conditioner.config.kind) for conditioner in model.conditioners]  # type: ignore[union-attr]
    text = [conditioner for conditioner in model.conditioners if isinstance(conditioner, TextConditioner | FrozenTextConditioner)]
    others = [conditioner for conditioner in model.conditioners if not isinstance(conditioner, TextConditioner | FrozenTextConditioner)]
    kl = isinstance(model.first_stage, KLAutoencoder)
    match others:
        case [] if not text:
            return "LDMPipeline"
        case [] if len(text) == 1:
            config, frozen = text[0].config, isinstance(text[0], FrozenTextConditioner)
            fits = config.length == PROMPT or text[0].tokenizer is None  # whoever brings a tokenizer decides then
            if fits and not (frozen and (config.mask or kl)):  # type: ignore[union-attr]
                return "LDMTextToImagePipeline"
            if kl:
                return "StableDiffusionPipeline"
            what = "hidden padding" if fits else f"prompts of {config.length} tokens"
            raise ValueError(f"conditioners: diffusers has no pipeline for {what} and a VQ first stage: {_ALONE}")
        case [LowResConditioner() as small] if not text:
            if (small.config.scale, small.config.fold) != (1, 1):
                raise ValueError(f"conditioners: LDMSuperResolutionPipeline takes small images of the latent's size alone: {_ALONE}")
            if small.config.channels == model.first_stage.channels:
                return "LDMSuperResolutionPipeline"
            widths = f"{small.config.channels} channels for latents of {model.first_stage.channels}"
            raise ValueError(f"conditioners: LDMSuperResolutionPipeline takes small images of as many channels as latents, not {widths}")
        case [MaskedImageConditioner() as masked] if len(text) == 1 and kl and masked.config.convention == "sd":
            return "StableDiffusionInpaintPipeline"
    raise ValueError(f"conditioners: diffusers has no pipeline for a latent model with {' and '.join(kinds)}: {_ALONE}")


def _text(model: LatentDiffusion, place: str) -> tuple[dict[str, Tensor], dict[str, tuple[list[str], Part]]]:
    """The projection behind a frozen encoder, and parts by folder with their library and class."""
    for conditioner in model.conditioners:
        if isinstance(conditioner, TextConditioner | FrozenTextConditioner):
            file, projection = "model.safetensors", {}
            if isinstance(conditioner, TextConditioner):
                settings, weights = joint_part(conditioner)
                kind = ["latent_diffusion", "LDMBertModel"]
            else:
                name, settings, weights = frozen_part(conditioner)
                kind = ["transformers", name]
                projection = {f"encoder_hid_proj.{key}": value for key, value in conditioner.projection.state_dict().items()}
            parts = {place: (kind, Part.of(settings, weights, file))}
            if conditioner.tokenizer is not None:
                files = tokenizer_files(conditioner.tokenizer, conditioner.config.length)
                parts["tokenizer"] = (["transformers", "PreTrainedTokenizerFast"], Part(files))
            return projection, parts
    return {}, {}


def _unet(model: LatentDiffusion, size: int, classes: LabelConditioner | None, projection: dict[str, Tensor]) -> Part:
    unet = model.unet
    weights = to_theirs(unet.state_dict(), unet_places(unet.config, bool(unet.gives.context)), unet.config) | projection
    if classes is not None:
        weights["class_embedding.weight"] = classes.embedding.weight.detach()
    width = projection["encoder_hid_proj.weight"].shape[1] if projection else None
    return Part.of(unet_settings(unet, size, len(weights["class_embedding.weight"]) if classes else None, width), weights)


def _unet_alone(model: LatentDiffusion, size: int) -> Part:
    """Of a model in pixels, or one that was read from a UNet alone. A context comes from elsewhere then; an encoder has no place."""
    first_stage = model.first_stage
    if bool(first_stage.mean.any()) or float(first_stage.std) != 1:
        raise ValueError("first_stage: the identity's statistics have no place in a UNet alone: set them to 0 and 1")
    kinds = [str(conditioner.config.kind) for conditioner in model.conditioners]  # type: ignore[union-attr]
    labels = [conditioner for conditioner in model.conditioners if isinstance(conditioner, LabelConditioner)]
    masked = [conditioner for conditioner in model.conditioners if isinstance(conditioner, MaskedImageConditioner)]
    known = set(kinds) <= {"features", "label", "low_res", "masked_image"} and len(set(kinds)) == len(kinds)
    if not known or any(one.config.route != "vector" for one in labels) or any(one.config.convention != "sd" for one in masked):
        raise ValueError(f"conditioners: diffusers has no pipeline for a model in pixels with {' and '.join(kinds)}")
    return _unet(model, size, labels[0] if labels else None, {})
