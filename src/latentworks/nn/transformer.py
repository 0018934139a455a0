"""The transformer that encodes a prompt's tokens and is trained jointly with the UNet (tau_theta of the paper, Appendix E.2.1)."""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from latentworks.config import Config
from latentworks.nn.attention import Attention

__all__ = ["TextTransformer", "TextTransformerConfig"]


class TextTransformerConfig(Config):
    """Sizes: ``width`` of a token, ``length`` in tokens, ``vocabulary`` entries. The attention is ``heads * head_channels`` wide.

    ``neighbours``: with how many tokens to either side each is mixed before the layers, see `Neighbours`; 0: none, as the authors do.
    """

    width: int = Field(default=512, ge=1)
    layers: int = Field(default=8, ge=1)
    heads: int = Field(default=8, ge=1)
    head_channels: int = Field(default=64, ge=1)
    length: int = Field(default=77, ge=1)
    vocabulary: int = Field(default=30522, ge=1)
    neighbours: int = Field(default=0, ge=0)


class Residual(nn.Module):
    """x + inner(norm(x))."""

    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = inner

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Same shape."""
        out: Tensor = x + self.inner(self.norm(x))
        return out


class Neighbours(nn.Module):
    """x + SiLU of a convolution over x and ``count`` tokens to either side.

    It binds words to those beside them ("a cat" to "left of") from the first step. Attention would have to learn which token is beside
    which, from a loss that hardly depends on it, and takes many times as long.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * count + 1, padding=count)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Same shape."""
        mixed: Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return x + functional.silu(mixed)


class TextTransformer(nn.Module):
    """Pre-norm encoder with learned positions and no mask: padding is attended to, as in the authors' BERTEmbedder."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        # of unit variance, not the authors' 0.0004: the layers' biases drown that, and a short run then never learns to tell prompts apart
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.neighbours = Neighbours(config.width, config.neighbours) if config.neighbours else nn.Identity()
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            self.layers.append(Residual(config.width, Attention(config.width, config.heads, config.head_channels)))
            feed_forward = nn.Sequential(nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width))
            self.layers.append(Residual(config.width, feed_forward))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Token ids to vectors of ``width``. Raises: ValueError for an id out of the vocabulary, or more tokens than positions."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.tokens.num_embeddings:
            limit = self.tokens.num_embeddings - 1
            raise ValueError(f"tokens: ids must lie in 0 to {limit}, not {int(tokens.min())} to {int(tokens.max())}")
        if tokens.shape[1] > self.positions.num_embeddings:
            limit = self.positions.num_embeddings
            raise ValueError(f"tokens: {tokens.shape[1]} per prompt, but this text transformer has {limit} positions: cut them")
        x = self.neighbours(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out
