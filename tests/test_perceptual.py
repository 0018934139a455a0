"""Perceptual distances: zero on equal images, gradients to both, frozen for ever, errors that show the way out."""

from pathlib import Path

import lpips
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from latentworks.nn.efficientnet import load_efficientnet, weights_path
from latentworks.nn.perceptual import (
    EfficientNetPerceptual,
    EfficientNetPerceptualConfig,
    LPIPSConfig,
    LPIPSPerceptual,
    NoPerceptualConfig,
    PerceptualConfig,
    build_perceptual,
)


def images(seed: int, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetPerceptual:
    return EfficientNetPerceptual()


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG16's convolutions under torchvision's names, with random weights."""
    widths, state, before, index = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512], {}, 3, 0
    random = torch.Generator().manual_seed(0)
    for width in widths:
        if width:
            state[f"features.{index}.weight"] = torch.randn(width, before, 3, 3, generator=random) * (2 / (9 * before)) ** 0.5
            state[f"features.{index}.bias"] = torch.zeros(width)
            before, index = width, index + 2
        else:
            index += 1
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_formula(efficientnet: EfficientNetPerceptual) -> None:
    x, y = images(0), images(1)
    net = load_efficientnet("lite1", weights_path("lite1", "dev"))
    expected = torch.zeros(2)
    for a, b in zip(*(net.features(((i + 1) * 127.5 - 127) / 128)[:5] for i in (x, y)), strict=True):
        expected += (F.normalize(a, dim=1) - F.normalize(b, dim=1)).pow(2).sum(1).mean((1, 2))
    assert torch.allclose(efficientnet(x, y), expected, rtol=1e-4)


def test_equal_images_are_at_zero_with_a_finite_gradient(efficientnet: EfficientNetPerceptual) -> None:
    x = images(0).requires_grad_()
    distance = efficientnet(x, images(0))
    distance.sum().backward()
    assert distance.abs().max() < 1e-9
    assert torch.isfinite(x.grad).all()


def test_the_gradient_reaches_every_pixel_of_both_and_no_weight(efficientnet: EfficientNetPerceptual) -> None:
    x, y = images(0).requires_grad_(), images(1).requires_grad_()
    efficientnet(x, y).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()
    assert (y.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in efficientnet.parameters())


def test_descending_it_brings_the_image_nearer(efficientnet: EfficientNetPerceptual) -> None:
    y, x = images(1), images(0).requires_grad_()
    before = efficientnet(x, y).mean()
    (gradient,) = torch.autograd.grad(before, x)
    assert efficientnet(x - 1e-2 * gradient.sign(), y).mean() < before


def test_training_mode_never_sets_in(efficientnet: EfficientNetPerceptual) -> None:
    outer = nn.Sequential(efficientnet).train()
    assert outer.training
    assert not any(m.training for m in efficientnet.modules())


def test_each_image_is_judged_alone(efficientnet: EfficientNetPerceptual) -> None:
    x, y = images(0), images(1)
    assert torch.allclose(efficientnet(x, y)[1:], efficientnet(x[1:], y[1:]), rtol=1e-5)


def test_gray_is_shown_as_rgb_and_four_channels_are_refused(efficientnet: EfficientNetPerceptual) -> None:
    x, y = images(0, 1), images(1, 1)
    assert torch.allclose(efficientnet(x, y), efficientnet(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"4: set perceptual=\{kind: none\}"):
        efficientnet(images(0, 4), images(1, 4))


def test_none_is_zero_for_any_channels() -> None:
    assert torch.equal(build_perceptual(NoPerceptualConfig())(images(0, 5), images(1, 5)), torch.zeros(2))


def test_lpips_equals_its_formula(vgg_file: Path) -> None:
    before = torch.get_rng_state()
    module = build_perceptual(LPIPSConfig(vgg=vgg_file))
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for p in module.parameters())
    x, y = images(0), images(1).requires_grad_()
    # arXiv:1801.03924, Eq. 1, on relu1_2, 2_2, 3_3, 4_3, 5_3
    state = torch.load(vgg_file, weights_only=True)
    linear = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def features(h: Tensor) -> list[Tensor]:
        h, outputs = (h - shift) / scale, []
        for i in range(30):
            if f"features.{i}.weight" in state:
                h = F.relu(F.conv2d(h, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1))
            elif f"features.{i - 1}.weight" not in state:  # neither a convolution nor its ReLU
                outputs.append(h)
                h = F.max_pool2d(h, 2)
        return [*outputs, h]

    expected = torch.zeros(2)
    for k, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).pow(2)
        expected = expected + F.conv2d(difference, linear[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    distance = module.train()(x, y)  # train(): its dropout must sleep on
    assert torch.allclose(distance, expected, rtol=1e-4)
    (gradient,) = torch.autograd.grad(distance.sum(), y)
    assert gradient.abs().sum() > 0


def test_lpips_without_weights_says_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth there, or set perceptual=\{kind: efficientnet\}"):
        LPIPSPerceptual()


def test_lpips_with_another_network_s_file(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not torchvision's VGG16"):
        LPIPSPerceptual(tmp_path / "other.pth")


def test_config_chooses_the_module() -> None:
    adapter = TypeAdapter(PerceptualConfig)
    assert adapter.validate_python({"kind": "efficientnet"}) == EfficientNetPerceptualConfig()
    assert isinstance(build_perceptual(EfficientNetPerceptualConfig(stages=2)), EfficientNetPerceptual)
