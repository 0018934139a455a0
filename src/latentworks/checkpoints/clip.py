"""CLIP's text encoder as Stable Diffusion 1.x has it: its settings, which files of weights do not carry, and its vocabulary."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from latentworks.checkpoints.vocabulary import END, open_clip_vocabulary, read_tokenizer

__all__ = ["CLIP", "CLIP_L", "clip_assets", "clip_settings"]

CLIP = "cond_stage_model.transformer.text_model."
"""Where the authors' files have it."""

CLIP_L: dict[str, Any] = {
    "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 77, "vocab_size": 49408, "projection_dim": 768, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
"""openai/clip-vit-large-patch14, the text half."""


def clip_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the encoder in an authors' file, whose sizes are read from its weights; CLIP has a head for 64 channels."""
    if f"{CLIP}embeddings.token_embedding.weight" not in state:
        return CLIP_L
    vocabulary, width = state[f"{CLIP}embeddings.token_embedding.weight"].shape
    layers = {int(m[1]) for key in state if (m := re.match(re.escape(CLIP) + r"encoder\.layers\.(\d+)\.", key))}
    inner = state.get(f"{CLIP}encoder.layers.0.mlp.fc1.bias")
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width if inner is None else len(inner),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": len(state.get(f"{CLIP}embeddings.position_embedding.weight", range(77))),
        "vocab_size": vocabulary,
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    return CLIP_L | sizes


def clip_assets(settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, str]:
    """What `build_conditioner` needs to build it without a hub. Its vocabulary comes from open-clip-torch unless another is given."""
    file = open_clip_vocabulary()
    if tokenizer is None and file is not None and settings["vocab_size"] == CLIP_L["vocab_size"]:
        tokenizer = read_tokenizer(file)
    assets = {"encoder.json": json.dumps(settings)}
    if tokenizer is not None:
        if tokenizer.padding is None and (end := tokenizer.token_to_id(END)) is not None:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())
            tokenizer.enable_padding(pad_id=end, pad_token=END)
        assets["tokenizer.json"] = tokenizer.to_str()
    return assets
