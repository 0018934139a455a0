"""A classifier of noisy latents p(y | x_t): the encoder half of a UNet with a pooling head, whose gradient guides diffusion (ADM)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.conditioners.label import class_index
from latentworks.config import Config
from latentworks.diffusion.process import Process
from latentworks.first_stage.base import FirstStage
from latentworks.nn.attention import AttentionPool
from latentworks.nn.blocks import UNET_EPS, group_norm, zero
from latentworks.types import Cond, Gives
from latentworks.unet import ContractingPath, UNetConfig

__all__ = ["ClassifierNet", "NoisyClassifier", "NoisyClassifierConfig"]

_STORED = (torch.float32, torch.bfloat16, torch.float16)
"""Types in which a model folder may keep the same weights."""


class NoisyClassifierConfig(Config):
    """``unet``: the UNet whose encoder half this is; what it says of a decoder or a context is not used.

    ``pool``: "attention" is ADM's choice, for latents of the size it was trained at; "mean" takes latents of any size.
    """

    unet: UNetConfig
    pool: Literal["attention", "mean"] = "attention"
    classes: int = Field(ge=1)
    names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "NoisyClassifierConfig":
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names: {len(self.names)} names for {self.classes} classes: give one each, or none")
        return self


class ClassifierNet(ContractingPath):
    """Logits of noisy latents of ``channels`` and ``side`` x ``side`` (guided-diffusion's ``EncoderUNetModel``)."""

    def __init__(self, config: NoisyClassifierConfig, channels: int, side: int) -> None:
        super().__init__(config.unet, channels, Gives())
        width, factor = self.widths[-1], config.unet.factors[-1]
        self.classifies, self.side = config, side
        self.norm_out = group_norm(width, UNET_EPS, config.unet.groups)
        if config.pool == "attention":
            self.head: nn.Module = AttentionPool(width, config.unet.heads_of(width), side // factor, config.classes)
        else:
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), zero(nn.Conv2d(width, config.classes, 1)), nn.Flatten())

    def check_size(self, height: int, width: int) -> None:
        """Raises: ValueError for latents of another size than its attention pooling was made for."""
        if isinstance(self.head, AttentionPool) and (height, width) != (self.side, self.side):
            raise ValueError(
                f"classifier: it was trained on latents of {self.side}x{self.side}, not {height}x{width}: draw the size it was trained at, "
                "or train one with classifier.pool=mean"
            )

    def forward(self, x: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """One number a class. Raises: ValueError for a size that it cannot halve, or was not made for."""
        self.check_size(x.shape[2], x.shape[3])
        (*_, h), _, _ = self.contract(x, t, Cond())
        out: Tensor = self.head(nn.functional.silu(self.norm_out(h)))
        return out


class NoisyClassifier(nn.Module):
    """log p(y | x_t) in the latent space of ``first_stage``, which stays frozen, under the noise of ``process``.

    Raises: ValueError when the network was built for other latents.
    """

    def __init__(self, first_stage: FirstStage, net: ClassifierNet, process: Process) -> None:
        super().__init__()
        if net.channels != first_stage.channels:
            channels = first_stage.channels
            raise ValueError(
                f"the classifier takes {net.channels} channels, but the first stage's latents have {channels}: make them equal"
            )
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.net = net
        self.process = process

    @property
    def config(self) -> NoisyClassifierConfig:
        """Its sizes and classes."""
        return self.net.classifies

    def train(self, mode: bool = True) -> "NoisyClassifier":
        """As usual, but the first stage stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def forward(self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """As `logits`: the training path, so that DDP sees it."""
        out: Tensor = self.net(x_t.to(self.net.conv_in.weight.dtype), t)
        return out.float()

    def logits(self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """One number a class, in float32; the network computes in the type of its weights."""
        return self(x_t, t)  # type: ignore[no-any-return]

    def log_prob(self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], label: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """log p(label | x_t) of each latent, differentiable in ``x_t``. Raises: ValueError for a label that is no class."""
        bad = label[(label < 0) | (label >= self.config.classes)]
        if len(bad):
            raise ValueError(f"label: {int(bad[0])} is not a class of this classifier: use 0 to {self.config.classes - 1}")
        return self.logits(x_t, t).log_softmax(dim=1).gather(1, label[:, None]).squeeze(1)

    def index(self, label: int | str) -> int:
        """A class by its number or its name. Raises: ValueError naming the nearest one."""
        return class_index("label", label, self.config.classes, self.config.names)

    def check(self, first_stage: FirstStage, process: Process) -> None:
        """Raises: ValueError unless these are what it was trained with, so that it knows what a model with them denoises.

        The same weights in half precision are the same first stage; what the network predicts (eps, x0 or v) makes no other process.
        """
        if not _same(self.first_stage, first_stage):
            raise ValueError(
                "classifier: it was trained in the latent space of another first stage: train one with --first-stage naming this model"
            )
        if not torch.equal(self.process.alpha, process.alpha):
            ours, theirs = (p.config.model_dump(exclude={"prediction"}) for p in (self.process, process))
            differ = ", ".join(f"{key} {ours[key]} instead of {theirs[key]}" for key in ours if ours[key] != theirs[key])
            raise ValueError(
                f"classifier: it was trained on the noise of another process ({differ}): train one with --first-stage naming this model"
            )


def _same(one: FirstStage, other: FirstStage) -> bool:
    """Whether two first stages have the same statistics and the same weights, as they are or as rounded in a file."""
    device = one.mean.device
    a, b = ({name: p.detach().to(device) for name, p in stage.named_parameters()} for stage in (one, other))
    shapes = [{name: p.shape for name, p in weights.items()} for weights in (a, b)]
    statistics = [torch.cat([stage.mean, stage.std[None]]).to(device) for stage in (one, other)]
    if type(one) is not type(other) or shapes[0] != shapes[1] or not torch.equal(*statistics):
        return False
    return any(all(torch.equal(a[name].to(dtype), b[name].to(dtype)) for name in a) for dtype in _STORED)
