"""Degradations against Pillow, PyTorch and closed forms; and back-projection, which gives the small image back."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from latentworks.data import degrade as module
from latentworks.data.degrade import back_project, bicubic, bsr, degrade

RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 48 x 64


@pytest.fixture(autouse=True)
def seeded():
    """The same images whatever ran before, as tests are shared out anew each time."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def decibels(a, b, largest=255):
    return 10 * math.log10(largest**2 / np.square(a.astype(float) - b).mean())


def test_bicubic_is_pillows():
    reference = np.asarray(Image.fromarray(SMOOTH).resize((16, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(bicubic(SMOOTH, 4), reference)
    np.testing.assert_array_equal(degrade("bicubic", SMOOTH, 4, RNG), reference)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (2, np.uint16), (4, np.uint8), (6, np.float32), (3, np.uint16)])
@pytest.mark.parametrize("kind", ["bicubic", "bsr"])
def test_channels_and_depth_stay(channels, dtype, kind):
    unit = np.kron(
        RNG.random((12, 16, channels)), np.ones((8, 8, 1))
    )  # so many blocks that their mean hardly depends on which pixels are seen
    image = unit.astype(dtype) if dtype == np.float32 else (unit * np.iinfo(dtype).max).astype(dtype)
    kept = image.copy()
    for seed in range(8):
        small = degrade(kind, image, 4, np.random.default_rng(seed))
        assert (small.shape, small.dtype) == ((24, 32, channels), dtype)
        assert small.mean() == pytest.approx(image.mean(), rel=0.05)
    np.testing.assert_array_equal(image, kept)


def test_bsr_is_a_function_of_the_generator_and_differs_from_draw_to_draw():
    draws = [bsr(SMOOTH, 4, np.random.default_rng(seed)) for seed in range(30)]
    for seed, draw in enumerate(draws):
        np.testing.assert_array_equal(draw, bsr(SMOOTH, 4, np.random.default_rng(seed)))
    assert len({draw.tobytes() for draw in draws}) == 30


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_bsr_leaves_everything_in_its_place(factor):
    """A spot in the middle stays there, whatever is drawn: no resize and no kernel moves the image."""
    y, x = np.meshgrid(*[np.arange(96) - 47.5] * 2, indexing="ij")
    image = np.rint(250 * np.exp(-(x**2 + y**2) / (2 * 14**2)))[..., None].astype(np.uint8)
    offsets = np.arange(96 // factor) - (96 // factor - 1) / 2
    for seed in range(25):
        small = bsr(image, factor, np.random.default_rng(seed))[..., 0].astype(float)
        small[small < 30] = 0  # noise far from the spot
        for axis in (0, 1):
            assert abs((small.sum(axis) * offsets).sum() / small.sum()) < 0.1


def test_bsr_has_the_papers_light_noise_and_no_other():
    """Of a grey image only the noise and JPEG's rounding of it are left: at most 2 steps of 8 bits, some of it coloured."""
    image = np.full((64, 64, 3), 128, np.uint8)
    small = np.stack([bsr(image, 4, np.random.default_rng(seed)) for seed in range(60)]).astype(float)
    deviations = small.std(axis=(1, 2, 3))
    assert deviations.max() < 2.5
    assert np.median(deviations) > 0.05
    assert abs(small.mean() - 128) < 0.3


@pytest.mark.parametrize(("height", "width"), [(7, 9), (13, 5), (30, 41)])
def test_linear_and_cubic_are_opencvs(height, width):
    """Which PyTorch's are too: pixel centres, edges repeated, a = -0.75."""
    x = RNG.random((3, 13, 17), dtype=np.float32) * 0.5 + 0.25  # nothing overshoots
    for mode, weigh in (("bilinear", module._linear), ("bicubic", module._cubic)):
        reference = F.interpolate(torch.from_numpy(x)[None], (height, width), mode=mode)[0]
        np.testing.assert_allclose(module._resize(x, height, width, weigh), reference, atol=1e-6)


@pytest.mark.parametrize("size", [3, 5, 6, 12])
def test_area_averages_what_a_pixel_covers(size):
    """The difference of the integral at its edges."""
    x = RNG.random((1, 12, 1), dtype=np.float32)
    integral = np.interp(np.linspace(0, 12, size + 1), np.arange(13), np.concatenate([[0], x.ravel().cumsum()]))
    np.testing.assert_allclose(module._resize(x, size, 1, module._area).ravel(), np.diff(integral) * size / 12, atol=1e-6)


def test_blur_is_a_convolution_with_mirrored_edges():
    x = RNG.random((2, 9, 12), dtype=np.float32)
    for seed in range(8):
        kernel = module._kernel(4, np.random.default_rng(seed))
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
        reference = ndimage.convolve(x, kernel[None], mode="mirror")
        np.testing.assert_allclose(module._blur(x, kernel), reference, atol=1e-5)


def test_kernels_are_gaussians_of_the_drawn_variances():
    """At most 2 along an axis for a factor of 4, half of them round."""
    kernels = [module._kernel(4, np.random.default_rng(seed)) for seed in range(200)]
    spreads = []
    for kernel in kernels:
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        y, x = np.meshgrid(offsets, offsets, indexing="ij")
        covariance = [[(kernel * a * b).sum() for a in (y, x)] for b in (y, x)]
        spreads.append(np.linalg.eigvalsh(covariance))
        assert abs((kernel * y).sum()) < 1e-5, "centred"
    spreads = np.array(spreads)
    assert 1.6 < spreads.max() <= 2
    round_ones = np.isclose(spreads[:, 0], spreads[:, 1], atol=1e-5).mean()
    assert 0.4 < round_ones < 0.6


def test_jpeg_is_pillows_of_quality_80_to_95():
    seen = set()
    for seed in range(60):
        coded = np.rint(module._jpeg(SMOOTH.transpose(2, 0, 1) / np.float32(255), np.random.default_rng(seed)).transpose(1, 2, 0) * 255)
        seen |= {quality for quality in range(75, 100) if np.array_equal(coded, jpeg(SMOOTH, quality))}
    assert (min(seen), max(seen)) == (80, 95)


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_back_projection_gives_the_input_back(dtype):
    largest = 1 if dtype == np.float32 else np.iinfo(dtype).max
    image = (SMOOTH / 255 * largest).astype(dtype)
    small = bicubic(image, 4)
    noisy = (image + RNG.normal(0, 0.1 * largest, image.shape)).clip(0, largest).astype(dtype)
    before, after = decibels(bicubic(noisy, 4), small, largest), decibels(bicubic(back_project(noisy, small, 4), 4), small, largest)
    assert before < 35
    assert after > 55
    assert decibels(back_project(noisy, small, 4), image, largest) > decibels(noisy, image, largest), "nothing else is lost"


def test_back_projection_leaves_alone_what_fits():
    small = bicubic(SMOOTH, 4)
    assert decibels(back_project(SMOOTH, small, 4), SMOOTH) > 50
    np.testing.assert_array_equal(back_project(SMOOTH, small, 4, steps=0), SMOOTH)


def test_mistakes_are_one_line():
    image = np.zeros((12, 10, 3), np.uint8)
    for wrong in (bicubic, lambda image, factor: bsr(image, factor, RNG), lambda image, factor: back_project(image, image, factor)):
        with pytest.raises(ValueError, match="factor: 4 does not divide an image of 12 x 10 pixels: cut it to a multiple of 4"):
            wrong(image, 4)
    with pytest.raises(ValueError, match=r"low_res: its shape \(12, 10, 3\) must be \(6, 5, 3\), 1/2 of the image's"):
        back_project(image, image, 2)
    with pytest.raises(ValueError, match="degradation: unknown kind 'blur': use bicubic or bsr"):
        degrade("blur", image, 2, RNG)
