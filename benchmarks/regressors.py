"""Networks that give the restored image in one pass, trained to be near it: what restoration by diffusion is compared with.

`SuperResolver` is the diffusion model's own UNet without its time. `Inpainter` is built of fast Fourier convolutions (arXiv:2109.07161).
"""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from latentworks.checkpoints.tensors import load_weights, read_tensors, without_weights, write_tensors
from latentworks.config import Config, read_mapping
from latentworks.nn.blocks import UNET_EPS, group_norm, zero
from latentworks.staging import staged
from latentworks.types import Cond, Gives
from latentworks.unet import UNet, UNetConfig

__all__ = ["Baseline", "Inpainter", "InpainterConfig", "SuperResolver", "SuperResolverConfig", "build", "load", "save", "size", "width_for"]


class SuperResolverConfig(Config):
    """``unet`` works at the small image's size; ``factor`` times larger is the result; ``degradation`` is what it was trained on."""

    kind: Literal["super_resolution"] = "super_resolution"
    unet: UNetConfig
    channels: int = Field(3, ge=1)
    factor: int = Field(4, ge=1)
    degradation: Literal["bicubic", "bsr"] = "bicubic"


class SuperResolver(nn.Module):
    """The bicubic enlargement plus what the UNet adds to it; ``factor`` x ``factor`` pixels are channels within."""

    def __init__(self, config: SuperResolverConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet, config.channels * config.factor**2, Gives())

    def forward(self, low_res: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The image, ``factor`` times larger."""
        factor = self.config.factor
        enlarged = F.interpolate(low_res.float(), scale_factor=factor, mode="bicubic", antialias=True)
        t = torch.zeros(len(low_res), dtype=torch.long, device=low_res.device)
        return enlarged + F.pixel_shuffle(self.unet(F.pixel_unshuffle(enlarged, factor), t, Cond()), factor)


class InpainterConfig(Config):
    """``width``: channels of the blocks, of which ``share`` go through the spectrum; they work at 1 / 2^``halvings`` of the size."""

    kind: Literal["inpainting"] = "inpainting"
    width: int = Field(ge=8, multiple_of=8)
    blocks: int = Field(9, ge=1)
    halvings: int = Field(3, ge=0, le=3)
    channels: int = Field(3, ge=1)
    share: float = Field(0.75, gt=0, lt=1)  # LaMa's
    groups: int = Field(8, ge=1)


class FourierUnit(nn.Module):
    """A 1x1 convolution of the spectrum's real and imaginary parts, norm and ReLU: each output pixel depends on every input pixel."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = group_norm(2 * channels, UNET_EPS, groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """In float32, as there is no FFT in bfloat16."""
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(x.float(), norm="ortho")
            parts = self.conv(torch.cat([spectrum.real, spectrum.imag], dim=1))
            real, imaginary = F.relu(self.norm(parts)).chunk(2, dim=1)
            return torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[2:], norm="ortho")


class SpectralTransform(nn.Module):
    """The way through the spectrum at half the channels, with a residual around it."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = nn.Conv2d(channels, half, 1, bias=False)
        self.norm = group_norm(half, UNET_EPS, groups)
        self.unit = FourierUnit(half, groups)
        self.leave = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        x = F.relu(self.norm(self.enter(x)))
        out: Tensor = self.leave(x + self.unit(x))
        return out


class FastFourierConv(nn.Module):
    """Two branches: 3x3 convolutions within ``near`` channels and between both, the spectrum within ``far`` ones; norm and ReLU on each."""

    def __init__(self, near: int, far: int, groups: int) -> None:
        super().__init__()
        self.near_to_near, self.near_to_far, self.far_to_near = (_conv(*pair) for pair in ((near, near), (near, far), (far, near)))
        self.far_to_far = SpectralTransform(far, groups)
        self.near_norm, self.far_norm = group_norm(near, UNET_EPS, groups), group_norm(far, UNET_EPS, groups)

    def forward(self, near: Float[Tensor, "b n h w"], far: Float[Tensor, "b f h w"]) -> tuple[Tensor, Tensor]:
        """Same shapes."""
        new_near = self.near_norm(self.near_to_near(near) + self.far_to_near(far))
        new_far = self.far_norm(self.near_to_far(near) + self.far_to_far(far))
        return F.relu(new_near), F.relu(new_far)


class Inpainter(nn.Module):
    """LaMa's generator at a small size: strided convolutions, residual blocks of two `FastFourierConv` each, and back up."""

    def __init__(self, config: InpainterConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width // 2**i for i in range(config.halvings, -1, -1)]
        self.far = 2 * round(config.share * config.width / 2)
        self.conv_in = nn.Conv2d(config.channels + 1, widths[0], 7, padding=3, padding_mode="reflect")
        self.down = nn.Sequential(*(_stage(a, b, config.groups, stride=2) for a, b in pairwise(widths)))
        sizes = (config.width - self.far, self.far, config.groups)
        self.blocks = nn.ModuleList(nn.ModuleList(FastFourierConv(*sizes) for _ in range(2)) for _ in range(config.blocks))
        widths.reverse()
        self.up = nn.Sequential(*(nn.Sequential(nn.Upsample(scale_factor=2), _stage(a, b, config.groups)) for a, b in pairwise(widths)))
        self.conv_out = zero(nn.Conv2d(widths[-1], config.channels, 7, padding=3, padding_mode="reflect"))

    def forward(self, image: Float[Tensor, "b c h w"], hole: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """The image with its hole filled; what is in the hole is not looked at, and the rest stays as it is."""
        h = self.down(F.relu(self.conv_in(torch.cat([torch.where(hole, 0.0, image), hole.to(image)], dim=1))))
        near, far = h.split([h.shape[1] - self.far, self.far], dim=1)
        for first, second in self.blocks:
            more_near, more_far = second(*first(near, far))
            near, far = near + more_near, far + more_far
        filled = self.conv_out(self.up(torch.cat([near, far], dim=1)))
        return torch.where(hole, filled.to(image), image)


def _conv(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, padding_mode="reflect", bias=False)


def _stage(channels: int, out_channels: int, groups: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(_conv(channels, out_channels, stride), group_norm(out_channels, UNET_EPS, groups), nn.ReLU())


BaselineConfig = Annotated[SuperResolverConfig | InpainterConfig, Field(discriminator="kind")]
Regressor = SuperResolver | Inpainter


class Baseline(Config):
    """A baseline's folder: its network and how it was trained."""

    network: BaselineConfig
    parameters: int
    facts: dict[str, Any]


def build(config: SuperResolverConfig | InpainterConfig) -> Regressor:
    """With random weights."""
    return SuperResolver(config) if isinstance(config, SuperResolverConfig) else Inpainter(config)


def size(network: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in network.parameters())


def width_for(parameters: int, config: InpainterConfig) -> InpainterConfig:
    """The config of the width whose number of parameters is nearest to ``parameters``."""
    sizes = {}
    with torch.device("meta"):
        for width in range(8, 1024, 8):
            sizes[width] = size(Inpainter(config.replace(width=width)))
            if sizes[width] > parameters:
                break
    return config.replace(width=min(sizes, key=lambda width: abs(sizes[width] - parameters)))


def save(folder: Path, network: Regressor, facts: dict[str, Any]) -> Path:
    """FOLDER/baseline.json and FOLDER/model.safetensors in bf16."""
    with staged(folder, replace=True) as path:
        Baseline(network=network.config, parameters=size(network), facts=facts).save(path / "baseline.json")
        tensors = network.state_dict()
        write_tensors(path / "model.safetensors", tensors, dtypes=dict.fromkeys(tensors, torch.bfloat16))
    return folder


def load(folder: Path, kind: str) -> tuple[Regressor, Baseline]:
    """A baseline of a kind, in evaluation mode. Raises: ValueError when there is none, or one of another kind."""
    if not (folder / "baseline.json").is_file():
        raise ValueError(f"{folder} holds no baseline: train it with benchmarks/baselines.py")
    baseline = Baseline.parse(read_mapping(folder / "baseline.json"))
    if baseline.network.kind != kind:
        raise ValueError(f"{folder} is a baseline for {baseline.network.kind}, not for {kind}")
    with without_weights():
        network = build(baseline.network)
    load_weights(network, read_tensors(folder / "model.safetensors"))
    return network.eval(), baseline
