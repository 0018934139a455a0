"""PSNR and SSIM against scikit-image, the non-white PSNR against its definition, codebook use on known counts."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from latentworks.metrics.paired import codebook_use, psnr, psnr_non_white, ssim


def pair(n: int = 3, channels: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    reference = torch.rand(n, channels, size, size, generator=random) * 2 - 1
    strength = torch.arange(1, n + 1).view(-1, 1, 1, 1) * 0.05
    return (reference + strength * torch.randn(reference.shape, generator=random)).clamp(-1, 1), reference


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_psnr_is_scikit_image_s_for_each_image(channels: int) -> None:
    x, y = pair(channels=channels)
    expected = [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=2) for a, b in zip(x, y, strict=True)]
    assert torch.allclose(psnr(x, y), torch.tensor(expected, dtype=torch.float32), atol=1e-4)


def test_psnr_of_8_bit_values() -> None:
    x, y = torch.full((1, 3, 4, 4), 10.0), torch.full((1, 3, 4, 4), 13.0)
    assert psnr(x, y, data_range=255).item() == pytest.approx(20 * np.log10(255 / 3), abs=1e-4)
    assert psnr(x, x).item() == float("inf")


def test_non_white_psnr_counts_only_drawn_pixels() -> None:
    x, y = pair()
    y[:, :, :16] = 1
    y[:, 0, 0, 0] = 2 * 249 / 255 - 1  # one channel just off white: counted
    y[:, 0, 0, 1] = 2 * 250 / 255 - 1  # still white
    rows = torch.cat([(x - y)[:, :, 16:].flatten(2), (x - y)[:, :, 0, :1]], dim=2)
    assert torch.allclose(psnr_non_white(x, y), 10 * torch.log10(4 / rows.square().mean((1, 2))), atol=1e-4)


def test_non_white_psnr_without_white_is_psnr_and_on_blank_paper_nan() -> None:
    x, y = pair()
    y = y.clamp(max=0.5)
    assert torch.allclose(psnr_non_white(x, y), psnr(x, y))
    assert psnr_non_white(x, torch.ones_like(y)).isnan().all()


def test_ssim_is_scikit_image_s_for_each_image() -> None:
    x, y = (torch.nn.functional.pad(image, [10] * 4) for image in pair())  # a frame alike in both: 1 there, however borders are treated
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0, "data_range": 1}
    inner = [structural_similarity((a.numpy() + 1) / 2, (b.numpy() + 1) / 2, **settings) for a, b in zip(x, y, strict=True)]
    share = (x.shape[2] - 10) ** 2 / x.shape[2] ** 2  # scikit-image leaves out 5 pixels on each side
    assert torch.allclose(ssim(x, y), torch.tensor(inner, dtype=torch.float32) * share + 1 - share, atol=1e-4)
    assert ssim(x[:1], y[:1]).shape == (1,)


def test_codebook_use() -> None:
    assert codebook_use(torch.tensor([5, 5, 0, 0])) == pytest.approx((0.5, 2.0))
    assert codebook_use(torch.tensor([9, 0, 0, 0])) == pytest.approx((0.25, 1.0))
    assert codebook_use(torch.ones(512)) == pytest.approx((1.0, 512.0))
    with pytest.raises(ValueError, match="no code was chosen"):
        codebook_use(torch.zeros(4))
