"""The parts of a diffusers folder: a config.json and weights each, read without the library and without running anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentworks.checkpoints.diffusers_config import UNetParts, first_stage_config, unet_config
from latentworks.checkpoints.diffusers_keys import first_stage_places, to_ours, unet_places
from latentworks.checkpoints.fold import unfold
from latentworks.checkpoints.tensors import read_tensors, write_tensors
from latentworks.config import read_mapping
from latentworks.first_stage import KLAutoencoder, VQAutoencoder, build_first_stage
from latentworks.unet import UNet

__all__ = ["VERSION", "Part", "read_first_stage", "read_settings", "read_unet", "read_weights", "unet_weights", "write_part"]

VERSION = "0.42.1"
"""Of the diffusers these files are compared with."""

_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
_COUNTS = ("layers_per_block", "transformer_layers_per_block", "encoder_layers", "num_hidden_layers")
_WIDTHS = (
    "in_channels", "out_channels", "block_out_channels", "latent_channels", "num_vq_embeddings", "vq_embed_dim", "cross_attention_dim",
    "encoder_hid_dim", "num_class_embeds", "d_model", "head_dim", "encoder_attention_heads", "vocab_size", "max_position_embeddings",
    "hidden_size", "intermediate_size",
)  # fmt: skip
_KEPT = "unfolded.safetensors"
_ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")


class Part(NamedTuple):
    """What goes into one folder: files of text by name, and weights with the name of their file (without weights: none).

    ``kept``: what was folded into the weights, see `unfold`; for us alone, and never in another type.
    """

    texts: Mapping[str, str]
    weights: Mapping[str, Tensor] = {}
    file: str = "diffusion_pytorch_model.safetensors"
    kept: Mapping[str, Tensor] = {}

    @classmethod
    def of(cls, settings: Mapping[str, Any], weights: Mapping[str, Tensor], file: str = "diffusion_pytorch_model.safetensors") -> "Part":
        """With a config.json."""
        version = {"_diffusers_version": VERSION} if "_class_name" in settings else {}
        return cls({"config.json": json.dumps({**settings, **version}, indent=2) + "\n"}, weights, file)


def write_part(folder: Path, part: Part, dtype: torch.dtype | None) -> None:
    """``dtype``: of the weights, None: as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in part.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if part.weights:
        floating = [key for key, value in part.weights.items() if value.is_floating_point()]
        write_tensors(folder / part.file, part.weights, {"format": "pt"}, dict.fromkeys(floating, dtype) if dtype else None)
    if part.kept:
        write_tensors(folder / _KEPT, part.kept, {"format": "latentworks"})


def read_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Raises: ValueError naming a missing or damaged file."""
    if not (folder / name).is_file():
        raise ValueError(f"{folder / name} is missing: this is no complete diffusers folder")
    return read_mapping(folder / name)


def read_weights(folder: Path, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a part, safetensors if there are any, in one file or in several.

    Raises: ValueError; also where the settings ``given`` are larger than all weights, before anything is built by them.
    """
    weights = _weights(folder)
    sides = max((side for value in weights.values() for side in value.shape), default=0)
    for keys, limit in ((_COUNTS, len(weights)), (_WIDTHS, sides)):
        for key in keys:
            values = given[key] if isinstance(given.get(key), list) else [given.get(key)]
            if len(values) > len(weights) or any(isinstance(value, int | float) and value > limit for value in values):
                raise ValueError(f"{key}: {str(given[key])[:40]} does not belong to these weights, which are fewer and smaller")
    return weights


def _weights(folder: Path) -> dict[str, Tensor]:
    for ending in _ENDINGS:
        for stem in _WEIGHTS:
            if (folder / f"{stem}{ending}").is_file():
                return read_tensors(folder / f"{stem}{ending}")
            if (index := folder / f"{stem}{ending}.index.json").is_file():
                files = sorted({str(file) for file in dict(read_mapping(index).get("weight_map") or {}).values()})
                if not files or any(Path(file).name != file for file in files):
                    raise ValueError(f"{index}: weight_map must name files of this folder")
                return {key: value for file in files for key, value in read_tensors(folder / file).items()}
    raise ValueError(f"{folder} has no weights: one of {', '.join(stem + _ENDINGS[0] for stem in _WEIGHTS)} (or .bin) is needed")


def read_first_stage(folder: Path) -> tuple[KLAutoencoder | VQAutoencoder, dict[str, Tensor], dict[str, Any]]:
    """The first stage, to be filled, its weights by our names, and its settings. Raises: ValueError.

    Among the weights are its statistics if we wrote the folder, folding them, and neither weights nor settings were changed since.
    """
    given = read_settings(folder)
    config, weights = first_stage_config(given), read_weights(folder, given)
    model = build_first_stage(config)
    assert isinstance(model, KLAutoencoder | VQAutoencoder)
    for name, factor in (("quant_conv", 2), ("post_quant_conv", 1)):
        if given.get(f"use_{name}") is False:  # an AutoencoderKL without it: it does nothing then
            width = factor * config.latent_channels
            weights |= {f"{name}.weight": torch.eye(width)[..., None, None], f"{name}.bias": torch.zeros(width)}
    own = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std", "quantizer.counts")}
    tensors = to_ours(weights, own, first_stage_places(config))
    if isinstance(model, VQAutoencoder):
        tensors["quantizer.counts"] = model.quantizer.counts
    if given.get("scaling_factor") == 1 and not given.get("shift_factor") and (folder / _KEPT).is_file():
        tensors |= unfold(tensors, read_tensors(folder / _KEPT))
    return model, tensors, given


def read_unet(folder: Path) -> tuple[UNetParts, dict[str, Tensor], dict[str, Any]]:
    """What the UNet is, its weights by their names, and its settings. Raises: ValueError."""
    given = read_settings(folder)
    weights = read_weights(folder, given)
    if given.get("flip_sin_to_cos") is False and "time_embedding.linear_1.weight" in weights:  # sines first
        sines, cosines = weights["time_embedding.linear_1.weight"].chunk(2, dim=1)
        weights["time_embedding.linear_1.weight"] = torch.cat([cosines, sines], dim=1)
    return unet_config(given), weights, given


def unet_weights(unet: UNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's weights by our names, from theirs. Raises: ValueError."""
    return to_ours(weights, unet.state_dict(), unet_places(unet.config, bool(unet.gives.context)), unet.config)
