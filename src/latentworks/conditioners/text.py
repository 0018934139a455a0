"""A prompt as condition, encoded by a transformer trained jointly with the UNet (Section 3.3), and the vocabulary to train it with."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.config import Config
from latentworks.nn.contrast import Contrast, Gather, LatentTower, contrast
from latentworks.nn.transformer import TextTransformer, TextTransformerConfig
from latentworks.types import Batch, Cond, Gives

__all__ = ["TextConditioner", "TextConfig", "aligned_texts", "drop_text", "fix_length", "train_tokenizer"]

PAD = "[PAD]"


class TextConfig(Config):
    """``width`` of the context, ``length`` in tokens that every prompt is cut or padded to, ``vocabulary`` entries (pad has id 0).

    ``neighbours``: with how many tokens to either side each is mixed first (`latentworks.nn.transformer.Neighbours`), or 0.
    ``vector``: width of a vector of the whole prompt, added to the time embedding and then as wide as that, or 0: tokens alone.
    ``word_dropout``, ``word_shuffle``: in training, with that probability a caption is cut to some of its words, to any number from one
    to all, and with this one its words are put in any order, so that a few captions are not just learned by heart.
    ``aligned``: how many tokens the net is given in place of the prompt's own, made of the vector alone. The vector has then learnt, before
    the net, which latent a caption belongs to (`latentworks.objectives.alignment`) and not what the net would have of it, so that what says
    the same is the same, also in words that no caption of training has; while the net learns it stays as it is. 0: the prompt's own
    tokens. ``channels``: of those latents, taken from the first stage.
    """

    kind: Literal["text"] = "text"
    width: int = Field(default=512, ge=1)
    layers: int = Field(default=8, ge=1)
    heads: int = Field(default=8, ge=1)
    head_channels: int = Field(default=64, ge=1)
    length: int = Field(default=77, ge=1)
    vocabulary: int = Field(default=30522, ge=1)
    neighbours: int = Field(default=0, ge=0)
    vector: int = Field(default=0, ge=0)
    aligned: int = Field(default=0, ge=0)
    channels: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0, le=1)
    word_dropout: float = Field(default=0.0, ge=0, le=1)
    word_shuffle: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_what_is_aligned(self) -> "TextConfig":
        if self.aligned and not self.vector:
            raise ValueError(f"vector: 0, but the {self.aligned} tokens of aligned are made of the prompt's vector: give it a width")
        return self

    @property
    def extension(self) -> str:
        """What the authors' encoder has no place for, in words; "" if it is theirs."""
        if self.neighbours:
            return "tokens that are mixed with their neighbours"
        return "a vector of the prompt beside its tokens" if self.vector else ""


class TextConditioner(Conditioner):
    """Reads ``batch["tokens"]`` if it is there, else tokenises ``batch["text"]``. "No condition" is the empty prompt.

    Raises: ValueError when the tokenizer has more entries than ``config.vocabulary``.
    """

    field = "text"

    def __init__(self, config: TextConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(context=config.width, vector=config.vector)
        if tokenizer is not None and tokenizer.get_vocab_size() > config.vocabulary:
            entries = tokenizer.get_vocab_size()
            raise ValueError(f"vocabulary: {config.vocabulary} is less than the tokenizer's {entries} entries: set it to {entries} or more")
        self.tokenizer = None if tokenizer is None else fix_length(tokenizer, config.length)
        sizes = config.model_dump(include=set(TextTransformerConfig.model_fields))
        self.transformer = TextTransformer(TextTransformerConfig(**sizes))
        self.summary = nn.Linear(config.width, config.vector) if config.vector else None
        self.tower = LatentTower(config.channels, config.vector) if config.aligned else None
        self.spread = nn.Linear(config.vector, config.aligned * config.width) if config.aligned else None

    def learn_to_align(self, learns: bool) -> None:
        """Whether the parts of an aligned text that `contrast` trains take gradients; what makes tokens of its vector is the net's."""
        for part in (self.transformer, self.summary, self.tower):
            if part is not None:
                part.requires_grad_(learns)

    def tokenize(self, text: list[str]) -> Int[Tensor, "b l"]:
        """Token ids, all of ``config.length``. Raises: ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError('text: this model came without a tokenizer; give batch["tokens"] instead, or load it with its tokenizer.json')
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(text)], dtype=torch.long)

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """Context ``b length width`` and, if configured, a vector: a linear layer of its mean, padding (id 0) left out.

        Aligned: context ``b aligned width``, made of that vector, which is of length sqrt(vector) and takes no gradient.
        Raises: ValueError when there is neither text nor tokens, or a token is not in the vocabulary.
        """
        context, vector = self._encoded(self._tokens(batch))
        if vector is None or self.spread is None:
            return Cond(context=context, vector=vector)
        vector = F.normalize(vector.detach().float(), dim=1) * self.config.vector**0.5
        return Cond(context=self.spread(vector).unflatten(1, (self.config.aligned, self.config.width)), vector=vector)

    def contrast(self, batch: Batch, z0: Float[Tensor, "b z h w"], gather: Gather) -> Contrast:
        """What aligns the vectors of a batch's captions with its latents (`latentworks.nn.contrast`); only where text is ``aligned``."""
        assert self.tower is not None
        tokens = self._tokens(batch)
        _, vector = self._encoded(tokens)
        assert vector is not None
        return contrast(vector, self.tower(z0), self.tower.log_scale, tokens, gather)

    def _tokens(self, batch: Batch) -> Int[Tensor, "b l"]:
        if "tokens" not in batch and "text" not in batch:
            raise ValueError('text: this model is conditioned on prompts; give batch["text"], a list of strings')
        tokens = batch["tokens"] if "tokens" in batch else self.tokenize(batch["text"])
        return tokens.to(self.transformer.tokens.weight.device)

    def _encoded(self, tokens: Int[Tensor, "b l"]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b e"] | None]:
        """The prompts' tokens, encoded, and if configured their vectors."""
        context: Tensor = self.transformer(tokens)
        if self.summary is None:
            return context, None
        words = (tokens != 0).to(context)[:, :, None]
        return context, self.summary((context * words).sum(dim=1) / words.sum(dim=1).clamp(min=1))

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """The prompt "" where true: its tokens, or all zeros without a tokenizer."""
        if not bool(where.any()):
            return batch
        batch = drop_text(batch, where)
        if "tokens" in batch:
            tokens = batch["tokens"]
            empty = torch.zeros_like(tokens) if self.tokenizer is None else self.tokenize([""])[:, : tokens.shape[1]].to(tokens)
            batch["tokens"] = torch.where(where.to(tokens.device)[:, None], empty, tokens)
        return batch

    def assets(self) -> dict[str, Any]:
        """The tokenizer."""
        return {} if self.tokenizer is None else {"tokenizer.json": self.tokenizer.to_str(pretty=True)}


def aligned_texts(conditioners: Iterable[nn.Module]) -> list[TextConditioner]:
    """Those of a model's conditioners that are text aligned with its latents."""
    return [c for c in conditioners if isinstance(c, TextConditioner) and c.config.aligned]


def drop_text(batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
    """A copy of the batch with the prompt "" where true."""
    batch = batch.copy()
    if "text" in batch:
        batch["text"] = ["" if dropped else text for text, dropped in zip(batch["text"], where.tolist(), strict=True)]
    return batch


def fix_length(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """A copy that always cuts and pads to ``length`` tokens, with the tokenizer's own padding token."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    padding = tokenizer.padding or {"pad_id": tokenizer.token_to_id(PAD) or 0, "pad_token": PAD}
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=padding["pad_id"], pad_token=padding["pad_token"])
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int, min_frequency: int = 2) -> Tokenizer:
    """Byte-pair encoding of lower-cased text on bytes, so that nothing is ever unknown; at most ``vocabulary`` entries, padding has id 0.

    Deterministic. Raises: ValueError when ``vocabulary`` cannot hold the 256 bytes and the padding.
    """
    if vocabulary < 257:
        raise ValueError(f"vocabulary: {vocabulary} cannot hold the 256 bytes and the padding: use 257 or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=min_frequency,
        special_tokens=[PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
