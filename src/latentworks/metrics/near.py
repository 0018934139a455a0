"""The images of a set nearest to another image: by a network's features, and by pixels but for mirroring, small shifts and recolouring."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = ["SPACES", "Album", "Kin", "aligned", "find", "kin", "reduced", "same", "thumbnails"]

SPACES = ("features", "pixels", "recoloured", "mirrored")
"""Where distances are taken. The last three are of pixels, whatever the small shift; the last two also whatever the colour balance."""

SIDE = 64  # pixels a side at which images are compared
SHIFTS = 16  # a shift goes up to one such part of the side: 4 of 64 pixels
THUMB = 8  # cells a side of a thumbnail
SAME = 0.015  # of the range: two pictures no cell of which differs by more are one picture saved twice
MIRRORED = ((), (3,), (2,), (2, 3))  # axes of b c h w
BY_FEATURES, BY_SHAPE, BY_COLOUR = 12, 12, 8  # candidates whose pixels are compared, by what they were found
FLAT = 1e-3  # a variance of the order of noise: a flat channel has no shape to correlate
GAINS = (0.4, 2.5)  # of contrast
CELL, PLACES = 12, 4  # cells a side when a difference is measured; the worst ones that count


class Album(NamedTuple):
    """A set of distinct images, by what finds them; ``pixels`` reads some of them, reduced, from where they are stored."""

    names: list[str]
    keys: list[bytes]  # hashes of the images as they are in their folder
    times: Int[np.ndarray, " n"]  # how often each image is in the set
    features: Float[Tensor, "n d"]
    thumbs: Float[Tensor, "n c 8 8"]
    pixels: Callable[[list[int]], Float[Tensor, "k c s s"]]


class Kin(NamedTuple):
    """Of one image, in each of `SPACES`: the place of the nearest training image, how often training has that picture, its distance, and
    that of the next real image.

    The next one is another training image, not the nearest saved once more, or a held-out one.
    """

    places: list[int]
    times: Int[np.ndarray, "4"]
    first: Float[np.ndarray, "4"]
    following: Float[np.ndarray, "4"]

    @property
    def ratios(self) -> Float[np.ndarray, "4"]:
        """The first distance over the other: small for what is much nearer to one training image than to any other."""
        ratios: np.ndarray = self.first / np.maximum(self.following, 1e-9)
        return ratios


def reduced(images: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c s s"]:
    """8-bit squares at the size they are compared in, at most 64 px a side, in [0, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    side = min(SIDE, *x.shape[2:])
    return x if x.shape[2:] == (side, side) else F.interpolate(x, (side, side), mode="bilinear", antialias=True)


def thumbnails(x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b c 8 8"]:
    """The means of 8 x 8 cells."""
    return F.adaptive_avg_pool2d(x, THUMB)


def aligned(x: Float[Tensor, "c s s"], others: Float[Tensor, "k c s s"]) -> Float[Tensor, "3 k"]:
    """Distances between the inner part of an image and the best fitting window of others, of a range of 1, in the last three of `SPACES`.

    Each window is the best shift by correlation or, for "pixels", by difference, all shifts at once by the Fourier transform (the inner
    part is padded with zeros, so none reaches around the border). But for "pixels", its channels are then given the brightness and contrast
    that fit best. What is measured is the difference in its worst places: see `_worst`.
    """
    shift, side = x.shape[1] // SHIFTS, x.shape[1]
    inner = x[:, shift : side - shift, shift : side - shift]
    mirrored = torch.stack([F.pad(inner - x.mean(), (shift,) * 4).flip([axis - 1 for axis in axes]) for axes in MIRRORED])
    centred = others - x.mean()  # smaller sums round less
    products = torch.fft.irfft2(torch.fft.rfft2(mirrored).conj() * torch.fft.rfft2(centred)[:, None], s=(side, side))
    n = (side - 2 * shift) ** 2
    cross = products.roll((shift, shift), (-2, -1))[..., : 2 * shift + 1, : 2 * shift + 1] / n  # k mirrored c shifts shifts
    mean, square = (_windows(power, shift)[:, None] / n for power in (centred, centred.square()))
    own_mean, own_square = (power.sum(dim=(1, 2))[:, None, None] / n for power in (mirrored[0], mirrored[0].square()))
    apart = (own_square + square - 2 * cross).mean(dim=2)
    variances = ((own_square - own_mean.square()).clamp(min=0) + FLAT) * ((square - mean.square()).clamp(min=0) + FLAT)
    unlike = -((cross - own_mean * mean + FLAT) / variances.sqrt()).mean(dim=2)
    plain, recoloured = (_cut(others, values[:, :1], inner.shape[1]) for values in (apart, unlike))
    turned = _cut(others, torch.cat([torch.full_like(unlike[:, :1], torch.inf), unlike[:, 1:]], dim=1), inner.shape[1])
    return torch.stack([_worst(inner - window) for window in (plain, _recoloured(recoloured, inner), _recoloured(turned, inner))])


def _windows(x: Float[Tensor, "k c s s"], shift: int) -> Float[Tensor, "k c w w"]:
    """Sums over every window that is ``shift`` pixels from each border on average."""
    size = x.shape[-1] - 2 * shift
    sums = F.pad(x.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
    return (sums[..., size:, size:] - sums[..., :-size, size:] - sums[..., size:, :-size] + sums[..., :-size, :-size]).float()


def _cut(others: Float[Tensor, "k c s s"], values: Float[Tensor, "k m w w"], size: int) -> Float[Tensor, "k c size size"]:
    """The window of each other image where the value is least, mirrored as there."""
    shifts = values.shape[-1]
    places = (np.unravel_index(place, (values.shape[1], shifts, shifts)) for place in values.flatten(1).argmin(dim=1).tolist())
    cut = [
        other[:, y : y + size, x : x + size].flip([axis - 1 for axis in MIRRORED[m]])
        for other, (m, y, x) in zip(others, places, strict=True)
    ]
    return torch.stack(cut)


def _recoloured(windows: Float[Tensor, "k c h w"], x: Float[Tensor, "c h w"]) -> Float[Tensor, "k c h w"]:
    """Windows whose channels have the mean of those of ``x``, and the contrast that fits these best within `GAINS`."""
    mean, own = windows.mean(dim=(2, 3), keepdim=True), x.mean(dim=(1, 2), keepdim=True)
    covariance = ((windows - mean) * (x - own)).mean(dim=(2, 3), keepdim=True)
    gain = (covariance + FLAT) / ((windows - mean).square().mean(dim=(2, 3), keepdim=True) + FLAT)
    return own + gain.clamp(*GAINS) * (windows - mean)


def _worst(difference: Float[Tensor, "k c h w"]) -> Float[Tensor, " k"]:
    """The mean of a difference's `PLACES` worst cells, each the average over a twelfth of the side.

    What a first stage does to an image averages out within a cell; a part that is another does not average out over the image, as in the
    tiles of arXiv:2301.13188, section 4.2.
    """
    side = max(1, difference.shape[2] // CELL)
    cells = F.avg_pool2d(difference, side, stride=max(1, side // 2)).square().mean(dim=1).sqrt().flatten(1)
    return cells.topk(min(PLACES, cells.shape[1])).values.mean(dim=1)


def find(
    features: Float[Tensor, " d"], thumb: Float[Tensor, "c 8 8"], album: Album, without: Bool[Tensor, " n"] | None = None
) -> Int[Tensor, " k"]:
    """Places of the few dozen images that may be nearest, by features and, mirrored or not, by the shape and the colours of thumbnails."""
    away = torch.zeros(len(album.names))
    if without is not None:
        away[without] = torch.inf
    mirrored = torch.stack([thumb.flip([axis - 1 for axis in axes]) for axes in MIRRORED])
    by = (
        (_squares(features[None], album.features), BY_FEATURES),
        (_squares(_shapes(mirrored), _shapes(album.thumbs)), BY_SHAPE),
        (_squares(mirrored.flatten(1), album.thumbs.flatten(1)), BY_COLOUR),
    )
    rows = ((values.min(dim=0).values + away, min(count, int((away == 0).sum()))) for values, count in by)
    found: Tensor = torch.unique(torch.cat([values.topk(count, largest=False).indices for values, count in rows]))
    return found


def _squares(a: Float[Tensor, "a d"], b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    return a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T


def _shapes(thumbs: Float[Tensor, "b c 8 8"]) -> Float[Tensor, "b d"]:
    """Thumbnails whatever their brightness, contrast and colour balance."""
    x = thumbs - thumbs.mean(dim=(2, 3), keepdim=True)
    return (x / (x.square().mean(dim=(2, 3), keepdim=True) + FLAT).sqrt()).flatten(1)


def kin(
    features: Float[Tensor, " d"], x: Float[Tensor, "c s s"], training: Album, held_out: Album | None, *, of: Album | None = None
) -> Kin:
    """How near a reduced image is to the training images, and to real images in general.

    ``of``: the one of both albums that it is in itself, where it is left out with all that are the same picture.
    """
    thumb = thumbnails(x[None])[0]
    places, values = _distances(features, x, training, same(thumb, training.thumbs) if of is training else None)
    nearest = values.argmin(dim=1)
    of_training = places[nearest].tolist()
    twins = torch.stack([same(training.thumbs[place], training.thumbs) for place in of_training])
    following = values.masked_fill(twins[:, places], torch.inf)
    others = following.min(dim=1).values
    if held_out is not None:
        _, elsewhere = _distances(features, x, held_out, same(thumb, held_out.thumbs) if of is held_out else None)
        others = torch.minimum(others, elsewhere.min(dim=1).values) if elsewhere.shape[1] else others
    others = torch.where(others.isinf(), values.max(dim=1).values, others)  # nothing but the same picture was found
    first = values.min(dim=1).values
    return Kin(of_training, twins.numpy() @ training.times, first.double().numpy(), others.double().numpy())


def _distances(
    features: Float[Tensor, " d"], x: Float[Tensor, "c s s"], album: Album, without: Bool[Tensor, " n"] | None
) -> tuple[Int[Tensor, " k"], Float[Tensor, "4 k"]]:
    """The places of the images of an album that may be nearest, and their distances in each of `SPACES`."""
    places = find(features, thumbnails(x[None])[0], album, without)
    by_features = _squares(features[None], album.features[places])[0].clamp(min=0).sqrt()
    return places, torch.cat([by_features[None], aligned(x, album.pixels(places.tolist()))])


def same(thumb: Float[Tensor, "c 8 8"], others: Float[Tensor, "k c 8 8"]) -> Bool[Tensor, " k"]:
    """Which others are the same picture, saved once more."""
    return (others - thumb).abs().amax(dim=(1, 2, 3)) < SAME
