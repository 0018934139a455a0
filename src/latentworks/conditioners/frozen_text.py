"""A prompt as condition, encoded by a frozen text encoder of the ``transformers`` library."""

import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from tokenizers import Tokenizer
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.conditioners.text import drop_text, fix_length
from latentworks.config import Config
from latentworks.types import Batch, Cond, Gives

__all__ = ["FrozenTextConditioner", "FrozenTextConfig", "load_frozen_text"]


class FrozenTextConfig(Config):
    """``encoder``: a folder or hub id of a ``transformers`` model. ``projection``: width of a trained linear layer behind it, or none.

    ``mask``: hide padding inside the encoder; Stable Diffusion does not.
    """

    kind: Literal["frozen_text"] = "frozen_text"
    encoder: str = Field(min_length=1)
    length: int = Field(default=77, ge=1)
    projection: int | None = Field(default=None, ge=1)
    mask: bool = True
    dropout: float = Field(default=0.0, ge=0, le=1)


class FrozenTextConditioner(Conditioner):
    """Reads ``batch["text_features"]`` (from a cache) if it is there, else encodes ``batch["tokens"]`` (none of them hidden), else
    ``batch["text"]``. "No condition" is the empty prompt.

    The encoder stays in evaluation mode and takes no gradient; its weights are part of the state dict, so that a model is one thing.
    The UNet attends to all ``config.length`` outputs, also to those of padding that was hidden inside the encoder.
    """

    field = "text"

    def __init__(self, config: FrozenTextConfig, encoder: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = None if tokenizer is None else fix_length(tokenizer, config.length)
        width = int(encoder.config.hidden_size)  # type: ignore[arg-type, union-attr]
        self.projection = nn.Linear(width, config.projection) if config.projection else nn.Identity()
        self.gives = Gives(context=config.projection or width)

    def train(self, mode: bool = True) -> "FrozenTextConditioner":
        """As usual, but the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, texts: list[str]) -> Float[Tensor, "b l d"]:
        """The encoder's last hidden state, float32: a function of each text alone, hence cacheable. Raises: ValueError without one."""
        if self.tokenizer is None:
            raise ValueError('text: this model came without a vocabulary; give batch["tokens"] instead, or load it with a tokenizer')
        encodings = self.tokenizer.encode_batch(texts)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings]) if self.config.mask else None
        return self._encode(torch.tensor([encoding.ids for encoding in encodings]), mask)

    @torch.no_grad()
    def _encode(self, tokens: Int[Tensor, "b l"], mask: Int[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        device = next(self.encoder.parameters()).device
        mask = None if mask is None else mask.to(device)
        hidden: Tensor = self.encoder(input_ids=tokens.to(device), attention_mask=mask).last_hidden_state
        return hidden.float()

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """Context ``b length width``. Raises: ValueError when there is neither text nor its tokens or features."""
        if "text_features" in batch:
            features = batch["text_features"]
        elif "tokens" in batch:
            features = self._encode(batch["tokens"])
        elif "text" in batch:
            features = self.features(batch["text"])
        else:
            raise ValueError('text: this model is conditioned on prompts; give batch["text"], a list of strings')
        return Cond(context=self.projection(features))

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """The prompt "" where true."""
        if not bool(where.any()):
            return batch
        batch = drop_text(batch, where)
        if "text_features" in batch:
            features = batch["text_features"]
            batch["text_features"] = torch.where(where.to(features.device)[:, None, None], self.features([""]).to(features), features)
        if "tokens" in batch:
            if self.tokenizer is None:
                raise ValueError("tokens: without a vocabulary the tokens of an empty prompt are not known: use guidance 1, or load one")
            tokens = batch["tokens"]
            empty = torch.tensor(self.tokenizer.encode("").ids)[: tokens.shape[1]].to(tokens)
            batch["tokens"] = torch.where(where.to(tokens.device)[:, None], empty, tokens)
        return batch

    def assets(self) -> dict[str, Any]:
        """The encoder's settings and, if there is one, the tokenizer: with the weights, all that is needed to build it without a hub."""
        settings: str = self.encoder.config.to_json_string(use_diff=False)  # type: ignore[operator, union-attr]
        return {"encoder.json": settings} | ({} if self.tokenizer is None else {"tokenizer.json": self.tokenizer.to_str(pretty=True)})


def load_frozen_text(config: FrozenTextConfig, assets: Mapping[str, str] | None = None) -> FrozenTextConditioner:
    """From a model folder's assets (weights to be filled in; no hub is asked), else from ``config.encoder``.

    Raises: ValueError when ``transformers`` or the encoder is missing.
    """
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError:
        raise ValueError("a frozen text encoder needs the transformers library: pip install 'latentworks[text]'") from None

    def family(settings: Any) -> Any:
        return AutoModelForTextEncoding if type(settings) in AutoModelForTextEncoding._model_mapping else AutoModel

    if assets and "encoder.json" in assets:
        settings = AutoConfig.for_model(**json.loads(assets["encoder.json"]))
        encoder = family(settings).from_config(settings).float()
        encoder = getattr(encoder, "text_model", encoder)  # CLIP before transformers 5, which has no such shell
        text = assets.get("tokenizer.json")
        return FrozenTextConditioner(config, encoder, Tokenizer.from_str(text) if text else None)
    try:
        settings = AutoConfig.from_pretrained(config.encoder)
        settings = getattr(settings, "text_config", settings)  # CLIP: the text half only
        encoder = family(settings).from_pretrained(config.encoder, config=settings, dtype=torch.float32)
        encoder = getattr(encoder, "text_model", encoder)
        library_tokenizer = AutoTokenizer.from_pretrained(config.encoder, use_fast=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder: {config.encoder!r} cannot be loaded, give a folder or a hub id: {str(error).splitlines()[0]}") from None
    tokenizer = library_tokenizer.backend_tokenizer
    if library_tokenizer.pad_token_id is not None:
        tokenizer.enable_padding(pad_id=library_tokenizer.pad_token_id, pad_token=library_tokenizer.pad_token)
    return FrozenTextConditioner(config, encoder, tokenizer)
