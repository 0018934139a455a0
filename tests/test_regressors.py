"""The networks that restoration by diffusion is compared with, which live beside the benchmarks."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from latentworks.recipes import get_recipe
from latentworks.types import Gives
from latentworks.unet import UNet, UNetConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from baselines import Regression, fitted
from regressors import FourierUnit, Inpainter, InpainterConfig, SuperResolver, SuperResolverConfig, build, load, save, size, width_for

SMALL = InpainterConfig(width=16, blocks=2)


@pytest.fixture
def inpainter():
    """With weights everywhere, the last layer included."""
    torch.manual_seed(0)
    network = Inpainter(SMALL)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.eval()


@pytest.fixture
def holed():
    generator = torch.Generator().manual_seed(1)
    hole = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    hole[..., 4:24, 6:20] = True
    return torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1, hole


def test_every_filled_pixel_depends_on_every_known_one_and_on_nothing_in_the_hole(inpainter, holed):
    image, hole = holed
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(inpainter(image, hole)[0, :, 10, 10].sum(), image)
    assert torch.equal(gradient.abs().sum(dim=1, keepdim=True) > 0, ~hole)


def test_known_pixels_stay(inpainter, holed):
    image, hole = holed
    filled = inpainter(image, hole)
    assert torch.equal(filled[~hole.expand(-1, 3, -1, -1)], image[~hole.expand(-1, 3, -1, -1)])
    assert (filled - image)[hole.expand(-1, 3, -1, -1)].abs().min() > 0


def test_a_fourier_unit_that_keeps_every_frequency_is_a_norm_of_the_spectrum():
    """With the identity for its convolution, and a norm that moves all values above zero and back in what follows."""
    unit = FourierUnit(2, groups=1)
    unit.conv.weight.data.copy_(torch.eye(4)[:, :, None, None])
    unit.norm.bias.data.fill_(50.0)
    x = torch.rand(1, 2, 8, 8)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    parts = torch.cat([spectrum.real, spectrum.imag], dim=1)
    constant = torch.fft.irfft2(torch.full_like(spectrum, 50 + 50j), s=(8, 8), norm="ortho")
    mean, spread = parts.mean(), (parts.var(correction=0) + 1e-5).sqrt()
    shift = torch.fft.irfft2(torch.full_like(spectrum, complex(mean, mean)), s=(8, 8), norm="ortho")
    torch.testing.assert_close(unit(x) - constant, (x - shift) / spread, atol=1e-4, rtol=1e-4)


def test_an_untrained_super_resolver_is_the_bicubic_enlargement():
    config = SuperResolverConfig(unet=UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(), heads=1, groups=8))
    network, small = SuperResolver(config), torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(network(small), F.interpolate(small, scale_factor=4, mode="bicubic", antialias=True))
    unet = UNet(config.unet, 4, Gives(concat=3))
    assert abs(size(network) - size(unet)) == (48 - 7) * 16 * 9 + (48 - 4) * (16 * 9 + 1), "the first and last convolution alone differ"


def test_the_width_gives_the_size():
    for parameters in (100_000, 1_000_000):
        config = width_for(parameters, SMALL)
        assert size(Inpainter(config)) == pytest.approx(parameters, rel=0.15)


def test_a_baseline_is_what_was_saved(inpainter, holed, tmp_path):
    save(tmp_path / "it", inpainter, {"minutes": 1.5})
    network, baseline = load(tmp_path / "it", "inpainting")
    assert (baseline.facts, baseline.parameters, network.config) == ({"minutes": 1.5}, size(inpainter), SMALL)
    torch.testing.assert_close(network(*holed), inpainter.bfloat16().float()(*holed))
    with pytest.raises(ValueError, match="is a baseline for inpainting, not for super_resolution"):
        load(tmp_path / "it", "super_resolution")
    with pytest.raises(ValueError, match=r"holds no baseline: train it with benchmarks/baselines\.py"):
        load(tmp_path, "inpainting")
    assert isinstance(build(SMALL), Inpainter)


def test_a_baseline_is_fitted_to_its_model():
    large = fitted(get_recipe("scenes-sr"), 0, 3)
    assert isinstance(large, SuperResolver)
    assert (large.config.factor, large.config.degradation) == (4, "bsr")
    filling = fitted(get_recipe("scenes-inpaint"), 300_000, 3)
    assert isinstance(filling, Inpainter)
    assert size(filling) == pytest.approx(300_000, rel=0.15)
    with pytest.raises(ValueError, match="--like: scenes-class neither enlarges nor inpaints"):
        fitted(get_recipe("scenes-class"), 0, 3)


def test_the_loss_is_that_of_the_hole(inpainter, holed):
    image, hole = holed
    batch = {"index": torch.zeros(1), "image": image, "mask": hole}
    (loss,) = Regression(inpainter).losses(batch, 0)
    apart = (inpainter(image, hole) - image).abs()
    torch.testing.assert_close(loss.value, apart[:, :, 4:24, 6:20].mean())
    assert Regression(inpainter).held_out([batch])["l1"] == pytest.approx(float(loss.value))
