"""Text encoders and tokenizers of diffusers folders: the jointly trained transformer (LDMBertModel), and those of ``transformers``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from latentworks.checkpoints.diffusers_keys import text_places, to_ours, to_theirs
from latentworks.checkpoints.vocabulary import read_tokenizer
from latentworks.conditioners import FrozenTextConditioner, FrozenTextConfig, TextConditioner, TextConfig
from latentworks.conditioners.frozen_text import load_frozen_text
from latentworks.config import read_mapping

__all__ = ["PROMPT", "frozen_conditioner", "frozen_part", "joint_conditioner", "joint_part", "tokenizer_files"]

PROMPT = 77
"""Tokens that LDMTextToImagePipeline cuts and pads every prompt to, whatever the model."""


def joint_conditioner(
    given: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: Path, length: int | None
) -> tuple[TextConditioner, dict[str, Tensor]]:
    """Ours of an LDMBertModel, and its weights by our names. ``length`` of a prompt: None is what the tokenizer's folder says.

    Raises: ValueError naming what has no counterpart.
    """
    width = given.get("d_model", 1280)
    for key, value in {"activation_function": "gelu", "encoder_ffn_dim": 4 * width}.items():
        if given.get(key, value) != value:
            raise ValueError(f"{key}: {given[key]!r} of an LDMBertModel has no counterpart here, only {value!r} has")
    length = min(length or _length(tokenizer), given.get("max_position_embeddings", 77))
    config = TextConfig.parse(
        {
            "width": width,
            "layers": given.get("encoder_layers", 32),
            "heads": given.get("encoder_attention_heads", 8),
            "head_channels": given.get("head_dim", 64),
            "length": length,
            "vocabulary": given.get("vocab_size", 30522),
        }
    )
    conditioner = TextConditioner(config, _tokenizer(tokenizer))
    known = {key: value for key, value in weights.items() if not key.startswith("to_logits.")}
    positions = "model.embed_positions.weight"
    if positions in known:
        known[positions] = known[positions][:length]  # what is behind is never used
    renamed = to_ours(known, conditioner.transformer.state_dict(), text_places(config.layers))
    return conditioner, {f"transformer.{key}": value for key, value in renamed.items()}


def joint_part(conditioner: TextConditioner) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of an LDMBertModel. Its ``to_logits``, which takes no part in anything, is zero.

    Raises: ValueError for what it has no place for.
    """
    config = conditioner.config
    if config.extension:
        raise ValueError(f"conditioners: an LDMBertModel has no place for {config.extension}: keep the model folder")
    settings = {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "d_model": config.width,
        "encoder_layers": config.layers,
        "encoder_ffn_dim": 4 * config.width,
        "encoder_attention_heads": config.heads,
        "head_dim": config.head_channels,
        "max_position_embeddings": config.length,
        "vocab_size": config.vocabulary,
        "pad_token_id": 0,
        "dropout": 0.0,
    }
    weights = to_theirs(conditioner.transformer.state_dict(), text_places(config.layers))
    zero = torch.zeros(())
    logits = {"to_logits.weight": zero.expand(config.vocabulary, config.width), "to_logits.bias": zero.expand(config.vocabulary)}
    return settings, weights | logits


def frozen_conditioner(
    name: str, given: dict[str, Any], weights: Mapping[str, Tensor], tokenizer: Path, length: int | None, projection: int | None
) -> tuple[FrozenTextConditioner, dict[str, Tensor]]:
    """Ours of a text encoder of ``transformers``, and its weights by our names; ``projection``: width of a linear layer behind it."""
    vocabulary = _tokenizer(tokenizer)
    limit = given.get("max_position_embeddings") or PROMPT
    config = FrozenTextConfig.parse(
        {
            "encoder": name,
            "length": min(length or _length(tokenizer), limit),
            "projection": projection,
            "mask": bool(given.get("use_attention_mask")),
        }
    )
    assets = {"encoder.json": json.dumps({key: value for key, value in given.items() if key not in ("dtype", "torch_dtype")})}
    try:
        conditioner = load_frozen_text(config, assets | ({} if vocabulary is None else {"tokenizer.json": vocabulary.to_str()}))
    except Exception as error:  # transformers raises of many kinds
        raise ValueError(f"no {name} can be made of its config.json: {' '.join(str(error).split())[:200]}") from None
    own = conditioner.encoder.state_dict()
    known = {re.sub(r"^text_model\.", "", key): value for key, value in weights.items()}
    known.pop("embeddings.position_ids", None)  # a count, which older files hold
    if surplus := sorted(known.keys() - own.keys()):
        raise ValueError(f"{len(surplus)} weights have no place in a {name}: {', '.join(surplus[:5])}")
    return conditioner, {f"encoder.{key}": value for key, value in known.items()}


def frozen_part(conditioner: FrozenTextConditioner) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Class, settings and weights of an encoder of ``transformers``."""
    encoder = conditioner.encoder
    settings = json.loads(conditioner.assets()["encoder.json"])
    clip = settings.get("model_type") == "clip_text_model"
    name = "CLIPTextModel" if clip else type(encoder).__name__
    weights = {("text_model." if clip else "") + key: value for key, value in encoder.state_dict().items() if "position_ids" not in key}
    return name, settings | {"architectures": [name], "use_attention_mask": conditioner.config.mask}, weights


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Files by name, for ``PreTrainedTokenizerFast``, whose prompts are ``length`` tokens long."""
    padding = tokenizer.padding or {}
    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "pad_token": padding.get("pad_token", "[PAD]")}
    return {"tokenizer.json": bare.to_str(pretty=True), "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}


def _tokenizer(folder: Path) -> Tokenizer | None:
    """With the padding that its settings tell; None where the pipeline has none."""
    if not folder.is_dir():
        return None
    tokenizer = read_tokenizer(folder)
    pad = _settings(folder).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if isinstance(pad, str) and (number := tokenizer.token_to_id(pad)) is not None:
        tokenizer.enable_padding(pad_id=number, pad_token=pad)
    return tokenizer


def _length(folder: Path) -> int:
    """The prompt's length that a tokenizer's folder says; without limit, it is diffusers' usual one."""
    length = _settings(folder).get("model_max_length")
    return int(length) if isinstance(length, int | float) and 0 < length < 1e6 else PROMPT


def _settings(folder: Path) -> dict[str, Any]:
    files = [folder / "special_tokens_map.json", folder / "tokenizer_config.json"]
    return {key: value for file in files if file.is_file() for key, value in read_mapping(file).items()}
