"""Attention over pixels and over a condition's tokens: the first stage's, the UNet's, and the SpatialTransformer of cross-attention."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from latentworks.nn.blocks import FIRST_STAGE_EPS, UNET_EPS, group_norm, zero

__all__ = ["Attention", "AttentionBlock", "AttentionPool", "AttnBlock", "LinearAttnBlock", "SpatialTransformer", "attend"]

EXPLICIT_SCORES = 1 << 20  # largest l * m for which the matrix of scores is kept for the backward pass


def attend(q: Float[Tensor, "b h l d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m d"], scale: float) -> Float[Tensor, "b h l d"]:
    """softmax(q k^T * scale) v by the faster kernel.

    PyTorch's fused kernel, except when gradients are needed on a CPU: its backward pass there is up to 8 times slower than two plain
    products, as long as the matrix of scores is small enough to be kept.
    """
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not needs_grad or q.device.type != "cpu" or q.shape[-2] * k.shape[-2] > EXPLICIT_SCORES:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # pixels, channels first: the kernel refuses them
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    b, h = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (b h) l d
    weights = torch.bmm(q * scale, k.transpose(1, 2)).softmax(dim=-1).to(v.dtype)
    if v.dtype == torch.float32 and v.stride(-1) != 1:  # pixels, channels first: in float32 multiplied as the authors do, see `swish`
        return torch.bmm(v.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2).view(b, h, *q.shape[1:])
    return torch.bmm(weights, v).view(b, h, *q.shape[1:])


class AttnBlock(nn.Module):
    """The first stage's self-attention over all pixels: one head, 1x1 convolutions, residual."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, FIRST_STAGE_EPS, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "b c h w -> b 1 (h w) c") for conv in (self.q, self.k, self.v))
        h = rearrange(attend(q, k, v, x.shape[1] ** -0.5), "b 1 (h w) c -> b c h w", h=x.shape[2])
        out: Tensor = x + self.proj_out(h)
        return out


class LinearAttnBlock(nn.Module):
    """The authors' linear attention (``attn_type: linear``): one head, keys normalised over pixels; neither norm nor residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape; time and memory linear in the number of pixels."""
        q, k, v = self.qkv(x).flatten(2).chunk(3, dim=1)  # b c l
        summary = torch.bmm(k.softmax(dim=-1).to(v.dtype), v.transpose(1, 2))  # b d e
        out: Tensor = self.out(torch.bmm(summary.transpose(1, 2), q).view_as(x))
        return out


class AttentionBlock(nn.Module):
    """The UNet's self-attention over pixels, for models without cross-attention.

    ``order`` of the channels of qkv: "head" is [head][q, k, v][channel], "qkv" is [q, k, v][head][channel], which the authors' code and
    ADM call the new attention order. With one head they are the same.
    """

    def __init__(self, channels: int, heads: int, groups: int = 32, order: Literal["head", "qkv"] = "head") -> None:
        super().__init__()
        self.heads = heads
        self.order = "(h qkv d)" if order == "head" else "(qkv h d)"
        self.norm = group_norm(channels, UNET_EPS, groups)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"] | None = None) -> Float[Tensor, "b c h w"]:
        """Same shape. ``context`` is not used: it lets both kinds of attention be called alike."""
        flat = x.flatten(2)
        q, k, v = rearrange(self.qkv(self.norm(flat)), f"b {self.order} l -> qkv b h l d", h=self.heads, qkv=3)
        scale = q.shape[-1] ** -0.25  # on both sides, as the authors' code has it: the same number, otherwise rounded
        h = rearrange(attend(q * scale, k * scale, v, 1.0), "b h l d -> b (h d) l")
        out: Tensor = (flat + self.proj_out(h)).view_as(x)
        return out


class AttentionPool(nn.Module):
    """One vector of a feature map of ``side`` x ``side``: its mean attends to itself and to all pixels (CLIP's, and ADM's classifiers')."""

    def __init__(self, channels: int, heads: int, side: int, out_channels: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.positions = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)  # the mean's, then the pixels'
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o"]:
        """``out_channels``. Raises: ValueError for a map of another size than the positions were learnt for."""
        if x.shape[2:] != (self.side, self.side):
            raise ValueError(f"attention pooling was made for {self.side}x{self.side} features, not {x.shape[2]}x{x.shape[3]}")
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(dim=2, keepdim=True), flat], dim=2) + self.positions.to(x.dtype)
        q, k, v = rearrange(self.qkv(tokens), "b (qkv h d) l -> qkv b h l d", h=self.heads, qkv=3)
        h = rearrange(attend(q[:, :, :1], k, v, q.shape[-1] ** -0.5), "b h 1 d -> b (h d) 1")
        out: Tensor = self.proj_out(h)
        return out.squeeze(2)


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves or to a context; no bias on q, k, v. The UNet's and the text transformer's."""

    def __init__(self, width: int, heads: int, head_channels: int, context_width: int | None = None) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(context_width or width, inner, bias=False)
        self.v = nn.Linear(context_width or width, inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"] | None = None) -> Float[Tensor, "b l d"]:
        """Same shape as x."""
        context = x if context is None else context
        q, k, v = (rearrange(y, "b l (h d) -> b h l d", h=self.heads) for y in (self.q(x), self.k(context), self.v(context)))
        out: Tensor = self.out(rearrange(attend(q, k, v, q.shape[-1] ** -0.5), "b h l d -> b l (h d)"))
        return out


class GEGLU(nn.Module):
    """Feed-forward with a gated GELU (arXiv:2002.05202), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 8 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Same shape."""
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        out: Tensor = self.proj_out(value * F.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each behind a LayerNorm: the order of the authors' code (Table 16 prints another)."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, heads, width // heads)
        self.cross_attention = Attention(width, heads, width // heads, context_width)
        self.feed_forward = GEGLU(width)

    def forward(self, x: Float[Tensor, "b l d"], context: Float[Tensor, "b m e"]) -> Float[Tensor, "b l d"]:
        """Same shape as x."""
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        x = x + self.feed_forward(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Pixels as tokens through ``depth`` transformer blocks that also look at the context (Appendix E.2.1), residual."""

    def __init__(self, channels: int, heads: int, context_width: int, depth: int = 1, groups: int = 32) -> None:
        super().__init__()
        self.norm = group_norm(channels, FIRST_STAGE_EPS, groups)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context_width) for _ in range(depth))
        self.proj_out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b l d"]) -> Float[Tensor, "b c h w"]:
        """Same shape as x."""
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.blocks:
            h = block(h, context)
        h = rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]).contiguous()
        out: Tensor = x + self.proj_out(h)
        return out
