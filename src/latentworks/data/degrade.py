"""Small images to train super-resolution on: SR3's bicubic ones and BSRGAN's with the paper's light parameters; and the way back."""

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image

from latentworks.data.transforms import Pixels, from_tensor, resize, to_tensor

__all__ = ["Degradation", "back_project", "bicubic", "bsr", "degrade"]

Degradation = Literal["bicubic", "bsr"]
Planes = Float[np.ndarray, "c h w"]
"""The channels of an image in [0, 1], float32."""

NOISE = (1, 2)
"""Standard deviations of the noise, in steps of 8 bits."""

QUALITY = (80, 95)
"""Of JPEG."""


def degrade(kind: Degradation, image: Pixels, factor: int, rng: np.random.Generator) -> Pixels:
    """The image ``factor`` times smaller: `bicubic`, for which nothing is drawn, or `bsr`. Raises: ValueError as these."""
    match kind:
        case "bicubic":
            return bicubic(image, factor)
        case "bsr":
            return bsr(image, factor, rng)
    raise ValueError(f"degradation: unknown kind {kind!r}: use bicubic or bsr")


def bicubic(image: Pixels, factor: int) -> Pixels:
    """``factor`` times smaller by an antialiased bicubic filter, as in SR3 (arXiv:2104.07636); any channels, the depth stays.

    Raises: ValueError for a factor that does not divide the sides.
    """
    return resize(image, *_target(image, factor))


def bsr(image: Pixels, factor: int, rng: np.random.Generator) -> Pixels:
    """Blur, two resizes, noise and JPEG in random order, then JPEG again (BSRGAN, arXiv:2103.14006; the authors' ``bsrgan_light``).

    Any channels, the depth stays; JPEG is for 8 bits of 1 or 3 channels, so other images go through everything else. Where theirs draws a
    kernel of an even size, which moves the image by half a pixel, ours is one pixel larger. Raises: ValueError as `bicubic`.
    """
    target = _target(image, factor)
    largest = float(np.iinfo(image.dtype).max) if np.issubdtype(image.dtype, np.integer) else 1.0
    x = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(largest)
    compress = _jpeg if image.dtype == np.uint8 and image.shape[2] in (1, 3) else _uncompressed
    if factor == 4 and rng.random() < 0.25:
        half = (2 * target[0], 2 * target[1])
        x = _resize(x, *half, _any_filter(rng)) if rng.random() < 0.5 else resize(x.transpose(1, 2, 0), *half).transpose(2, 0, 1)
        factor = 2
    order = rng.permutation(5)  # of blur, first resize, second resize, noise, JPEG
    first, second = sorted(np.flatnonzero((order == 1) | (order == 2)))
    order[first], order[second] = 1, 2
    for step in order:
        match step:
            case 0:
                x = _blur(x, _kernel(factor, rng))
            case 1:
                x = _shrink(x, factor, rng)
            case 2:
                x = _resize(x, *target, _any_filter(rng))
            case 3:
                x = _noise(x, rng)
            case 4:
                x = compress(x, rng) if rng.random() < 0.9 else x
    x = compress(x, rng).transpose(1, 2, 0) * np.float32(largest)
    return (np.rint(x) if np.issubdtype(image.dtype, np.integer) else x).astype(image.dtype)


def back_project(image: Pixels, low_res: Pixels, factor: int, steps: int = 10) -> Pixels:
    """The image moved so that its `bicubic` version becomes ``low_res``: x + up(low_res - down(x)), ``steps`` times, kept in range.

    Iterative back-projection (Irani and Peleg, 1991) with the bicubic filter for both ways. The depth is that of the image.
    Raises: ValueError when the two do not fit each other.
    """
    height, width = _target(image, factor)
    if low_res.shape != (height, width, image.shape[2]):
        raise ValueError(f"low_res: its shape {low_res.shape} must be {(height, width, image.shape[2])}, 1/{factor} of the image's")
    x, small = to_tensor(np.stack([image])), to_tensor(np.stack([low_res]))
    for _ in range(steps):
        missing = small - F.interpolate(x, (height, width), mode="bicubic", antialias=True)
        x = (x + F.interpolate(missing, x.shape[2:], mode="bicubic", antialias=True)).clamp(-1, 1)
    return np.asarray(from_tensor(x, image.dtype)[0])


def _target(image: Pixels, factor: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor: {factor} does not divide an image of {height} x {width} pixels: cut it to a multiple of {factor}")
    return height // factor, width // factor


def _kernel(factor: int, rng: np.random.Generator) -> Float[np.ndarray, "k k"]:
    """A Gaussian: half of the time with two variances and a direction, else round."""
    if rng.random() < 0.5:
        variances, angle = (4 + factor) / 4 * rng.random(2), np.pi * rng.random()
        radius, turn = int(rng.integers(5, 15)) // 2, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    else:
        variances, turn = np.full(2, ((2 + 0.2 * factor) / 4 * rng.random()) ** 2), np.eye(2)
        radius = int(rng.integers(5, 8)) // 2
    offsets = np.arange(-radius, radius + 1)
    places = np.stack(np.meshgrid(offsets, offsets), axis=-1) @ turn
    logs = -(places**2 / np.maximum(variances, 1e-6)).sum(axis=-1) / 2
    weights = np.exp(logs)
    return np.asarray((weights / weights.sum()).astype(np.float32))


def _blur(x: Planes, kernel: Float[np.ndarray, "k k"]) -> Planes:
    """Edges mirrored; by FFT, whose time does not grow with the kernel. Within range, as the weights are positive and sum to 1."""
    radius = len(kernel) // 2
    padded = torch.from_numpy(np.pad(x, ((0, 0), (radius, radius), (radius, radius)), mode="reflect"))
    size = padded.shape[1:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(torch.from_numpy(kernel), s=size)
    return np.asarray(torch.fft.irfft2(spectrum, s=size)[:, 2 * radius :, 2 * radius :].clamp(0, 1).numpy())


def _shrink(x: Planes, factor: int, rng: np.random.Generator) -> Planes:
    """The first resize: by a factor of 1 to twice ``factor`` with any filter, or by ``factor`` with a Gaussian of random width."""
    if rng.random() < 0.8:
        by, weigh = rng.uniform(1, 2 * factor), _any_filter(rng)
    else:
        by, deviation = float(factor), rng.uniform(0.1, 0.6 * factor)

        def weigh(d: Distances, scale: float) -> Distances:
            return np.exp(-0.5 * (d / deviation) ** 2)

    return _resize(x, max(1, int(x.shape[1] / by)), max(1, int(x.shape[2] / by)), weigh)


def _noise(x: Planes, rng: np.random.Generator) -> Planes:
    """Gaussian: of each channel for itself, of all channels alike, or with a random covariance between them."""
    kind, deviation, channels = rng.random(), rng.integers(*NOISE, endpoint=True) / 255, len(x)
    if kind > 0.6:
        noise = rng.standard_normal(x.shape, np.float32) * np.float32(deviation)
    elif kind < 0.4:
        noise = rng.standard_normal(x.shape[1:], np.float32) * np.float32(deviation)
    else:
        turn = np.linalg.qr(rng.random((channels, channels))).Q
        mix = NOISE[1] / 255 * turn * np.sqrt(rng.random(channels))
        noise = np.tensordot(mix.astype(np.float32), rng.standard_normal(x.shape, np.float32), axes=1)
    return np.asarray((x + noise).clip(0, 1))


def _jpeg(x: Planes, rng: np.random.Generator) -> Planes:
    pixels = np.rint(x.transpose(1, 2, 0) * 255).astype(np.uint8)
    file = io.BytesIO()
    quality = int(rng.integers(*QUALITY, endpoint=True))
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file, formats=["JPEG"]), np.float32).reshape(pixels.shape)
    return decoded.transpose(2, 0, 1) / np.float32(255)


def _uncompressed(x: Planes, rng: np.random.Generator) -> Planes:
    return x


Distances = Float[np.ndarray, "o i"]
Filter = Callable[[Distances, float], Distances]
"""(distance of input from output pixel, input pixels an output pixel) -> weight, up to a factor for each output pixel."""


def _linear(d: Distances, scale: float) -> Distances:
    return np.asarray(np.maximum(1 - np.abs(d), 0))


def _cubic(d: Distances, scale: float) -> Distances:
    """Keys' convolution with a = -0.75, as OpenCV's."""
    d, a = np.abs(d), -0.75
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _area(d: Distances, scale: float) -> Distances:
    """How much of the input pixel the output pixel covers."""
    return np.asarray(np.clip((scale + 1) / 2 - np.abs(d), 0, min(1, scale)))


def _any_filter(rng: np.random.Generator) -> Filter:
    """One of the three that the authors draw from in OpenCV; linear and cubic are not antialiased, which is part of the degradation."""
    return (_linear, _cubic, _area)[rng.integers(3)]


def _resize(x: Planes, height: int, width: int, weigh: Filter) -> Planes:
    """Separable; edge pixels are repeated; kept in range."""
    rows, columns = _weights(x.shape[1], height, weigh), _weights(x.shape[2], width, weigh)
    return np.asarray((rows @ x @ columns.T).clip(0, 1))


def _weights(size: int, target: int, weigh: Filter) -> Distances:
    """Row o holds the share of each input pixel in output pixel o."""
    scale, beyond = size / target, 2
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = weigh(np.arange(-beyond, size + beyond) - centres[:, None], scale)
    inside = weights[:, beyond:-beyond].copy()
    inside[:, 0] += weights[:, :beyond].sum(axis=1)
    inside[:, -1] += weights[:, -beyond:].sum(axis=1)
    return np.asarray((inside / inside.sum(axis=1, keepdims=True)).astype(np.float32))
