"""Losses of image guidance: each T by hand, through every first stage, per image; with a model and classifier-free guidance on top."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentworks.diffusion.guidance import classifier_free, image
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.first_stage import IdentityConfig, IdentityFirstStage, build_first_stage
from latentworks.first_stage.base import FirstStage
from latentworks.image_guidance import ImageGuidanceConfig, image_loss, known_latent
from latentworks.nn.perceptual import EfficientNetPerceptual
from latentworks.random import randn_like_per_image
from toys import ae, diffusion_model

IDENTITY = IdentityFirstStage(IdentityConfig())


def images(b: int = 3, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(b, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def first_stage(name: str) -> FirstStage:
    torch.manual_seed(0)
    stage = build_first_stage(ae(name=name).first_stage).eval().requires_grad_(False)
    stage.set_statistics(torch.full((stage.channels,), 0.1), torch.tensor(0.3))
    return stage


def loss(x: Tensor, target: Tensor, mask: Tensor | None = None, stage: FirstStage = IDENTITY, **settings: object) -> Tensor:
    size = (x.shape[2] * stage.factor, x.shape[3] * stage.factor)
    return image_loss(ImageGuidanceConfig.parse(settings), stage, target, size, mask)(x)


def half_squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(a - b).square().sum() / 2 for a, b in zip(x, y, strict=True)])


def test_each_view_is_what_it_says() -> None:
    x, y = images(), images(seed=1)
    torch.testing.assert_close(loss(x, y), half_squares(x, y))
    torch.testing.assert_close(loss(x, y[:1]), half_squares(x, y[:1].expand_as(x)))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey_x, grey_y = ((luma * v).sum(1, keepdim=True) for v in (x, y))
    torch.testing.assert_close(loss(x, y, guide="grey"), half_squares(grey_x, grey_y))
    torch.testing.assert_close(loss(x, grey_y, guide="grey"), half_squares(grey_x, grey_y))
    hole = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    hole[..., 4:9] = True
    torch.testing.assert_close(loss(x, y, hole, guide="mask"), half_squares(x * ~hole, y * ~hole))


@pytest.mark.parametrize("factor", [2, 4])
def test_down_is_pillows_bicubic_reduction(factor: int) -> None:
    """As data is reduced by, so that a thumbnail made elsewhere is one a perfect sample could match."""
    x = images(1, size=16)
    small = [np.asarray(Image.fromarray(c.numpy()).resize((16 // factor,) * 2, Image.Resampling.BICUBIC)) for c in x[0]]
    assert loss(x, torch.from_numpy(np.stack(small))[None], guide="down").item() < 1e-9
    assert loss(x, torch.from_numpy(np.stack(small))[None] + 0.1, guide="down").item() > 0.01


def test_what_is_decoded_beyond_the_size_is_not_compared() -> None:
    x, y = images(1), images(1, seed=1)[..., :13, :10]
    value = image_loss(ImageGuidanceConfig(), IDENTITY, y, (13, 10))(x)
    torch.testing.assert_close(value, half_squares(x[..., :13, :10], y))


@pytest.mark.parametrize(("guide", "channels"), [("identity", 3), ("grey", 3), ("down", 1)])
def test_the_perceptual_distance_is_that_of_the_networks_times_the_cells(guide: str, channels: int) -> None:
    stage = IdentityFirstStage(IdentityConfig(in_channels=channels))
    x, y = images(2, channels, 32), images(1, channels, 16 if guide == "down" else 32, seed=1)
    seen = {"identity": x, "grey": (torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) * x).sum(1, keepdim=True)}.get(guide)
    seen = F.interpolate(x, (16, 16), mode="bicubic", antialias=True) if seen is None else seen
    target = (torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) * y).sum(1, keepdim=True) if guide == "grey" else y
    expected = EfficientNetPerceptual()(seen, target.expand_as(seen)) * (seen.shape[2] / 16) * (seen.shape[3] / 16)
    torch.testing.assert_close(loss(x, y, stage=stage, guide=guide, distance="perceptual"), expected)


def gradient(z: Tensor, target: Tensor, **settings: object) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, target, **settings).sum(), z)[0]


@pytest.mark.parametrize("distance", ["l2", "perceptual"])
def test_descending_it_through_decode_brings_a_latent_to_the_image(distance: str) -> None:
    """Row i of the gradient is that of image i alone."""
    stage, target = first_stage("openmoji-64-ae"), images(3)
    z, settings = torch.randn(3, stage.channels, 8, 8, generator=torch.Generator().manual_seed(0)), {"distance": distance, "stage": stage}
    grad = gradient(z, target, **settings)
    torch.testing.assert_close(gradient(z[1:2], target[1:2], **settings), grad[1:2], rtol=1e-4, atol=1e-4)
    step = 0.02 / grad.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    assert (loss(z - step * grad, target, **settings) < loss(z, target, **settings)).all()


def test_gradients_pass_straight_through_the_quantiser() -> None:
    """Those at the codes' vectors, times the latent's scale."""
    stage, target = first_stage("openmoji-64-ae-vq"), images(3)
    z = torch.randn(3, stage.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = stage.quantizer.lookup(stage.quantizer.nearest(stage.unnormalise(z))).requires_grad_()
    image = stage.decoder(stage.post_quant_conv(codes))
    (expected,) = torch.autograd.grad(half_squares(image, target).sum(), codes)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(z, target, stage=stage), stage.std * expected, rtol=1e-3, atol=1e-4)


def test_an_image_and_a_prompt_guide_in_one_call() -> None:
    """Classifier-free below, the image above, under a sampler without gradients; image i the same in any batch."""
    model, _ = diffusion_model()
    target, seeds = images(3, size=8), [4, 5, 6]

    @torch.no_grad()
    def sample(rows: slice, scale: float) -> Tensor:
        b = len(seeds[rows])
        cond, uncond = (model.condition({"text": [text] * b}) for text in ("red blocks", ""))
        config = ImageGuidanceConfig(guide="down", scale=scale)
        both = classifier_free(model.predict, cond, uncond, 3.0)
        guided = image(both, image_loss(config, model.first_stage, target[rows], (16, 16)), model.process, config.scale)
        x = randn_like_per_image("start", seeds[rows])(torch.empty(b, model.first_stage.channels, 8, 8))
        steps = SAMPLERS["dpmpp_2m"](guided, x, model.process, model.process.timesteps(4, "trailing"), torch.randn_like)
        return list(steps)[-1].x

    plain, guided = sample(slice(0, 3), 0.0), sample(slice(0, 3), 0.02)
    assert not guided.requires_grad
    errors = [loss(z, target, stage=model.first_stage, guide="down") for z in (plain, guided)]
    assert (errors[1] < errors[0]).all()
    torch.testing.assert_close(sample(slice(1, 2), 0.02), guided[1:2], rtol=1e-3, atol=1e-3)


def test_the_known_latent_has_nothing_of_what_is_in_the_hole() -> None:
    x, hole = images(2), torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    hole[0, :, 5:8, 3:7] = True
    known, mask = known_latent(IDENTITY, x, hole)
    assert torch.equal(mask, hole)
    assert torch.equal(known[1], x[1])
    assert torch.equal(known[0][:, ~hole[0, 0]], x[0][:, ~hole[0, 0]])
    torch.testing.assert_close(known[0][:, hole[0, 0]], x[0][:, ~hole[0, 0]].mean(dim=1, keepdim=True).expand(3, 12))
    stage = first_stage("openmoji-64-ae")
    latent, small = known_latent(stage, x, hole)
    assert small[0, 0].nonzero().tolist() == [[row, column] for row in (2, 3) for column in (1, 2, 3)]
    assert torch.equal(known_latent(stage, x.masked_fill(hole, 9.0), hole)[0], latent)
    torch.testing.assert_close(latent[1:], stage.to_latent(stage.encode_raw(x[1:])))
    assert known_latent(stage, x, torch.ones_like(hole))[0].isfinite().all()


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"guide": "sketch"}, {}, r"guide: Input should be 'identity', 'down', 'grey' or 'mask' \(got 'sketch'\)"),
        ({"scale": float("inf")}, {}, r"scale: Input should be a finite number"),
        ({"scale": -1.0}, {}, r"scale: Input should be greater than or equal to 0"),
        ({}, {"size": 8}, "the image has 8x8 pixels, the samples 16x16: make them equal, or use 'down' with a smaller image"),
        ({"guide": "down"}, {}, "the image has 16x16 pixels, the samples 16x16: for 'down' give a smaller image of the same proportions"),
        ({"guide": "down"}, {"width": 4}, "the image has 4x16 pixels, the samples 16x16: for 'down'"),
        ({}, {"channels": 1}, "the image has 1 channels, this model draws 3: give an image of 3"),
        ({"guide": "grey"}, {"channels": 2, "draws": 2}, "'grey' is of red, green and blue, and this model draws 2 channels"),
        ({"distance": "perceptual"}, {"channels": 2, "draws": 2}, "'perceptual' sees 1 or 3 channels, and this model draws 2: use 'l2'"),
        ({"guide": "mask"}, {}, "guide: 'mask' needs a mask, and nothing else takes one"),
        ({}, {"hole": 16}, "guide: 'mask' needs a mask, and nothing else takes one"),
        ({"guide": "mask"}, {"hole": 8}, "mask: it has 8x8 pixels, the samples 16x16: make them equal"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], given: dict[str, int], message: str) -> None:
    side = given.get("size", 16)
    target = torch.zeros(1, given.get("channels", 3), side, given.get("width", side))
    hole = torch.zeros(1, 1, given["hole"], given["hole"], dtype=torch.bool) if "hole" in given else None
    stage = IdentityFirstStage(IdentityConfig(in_channels=given.get("draws", 3)))
    with pytest.raises(ValueError, match=message):
        image_loss(ImageGuidanceConfig.parse(settings), stage, target, (16, 16), hole)
