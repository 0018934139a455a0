"""Tiles of a first stage give what the whole gives, whatever f, the kind, the attention and the size."""

import pytest
import torch
from torch import nn

from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig, build_first_stage
from latentworks.first_stage.autoencoder import through
from latentworks.first_stage.tiled import in_tiles, reach
from latentworks.nn.blocks import FIRST_STAGE_EPS, Downsample, ResnetBlock, Upsample, group_norm

SMALL = {"channels": 8, "blocks": 1, "latent_channels": 3, "groups": 4}
STAGES = {
    "kl-f2": KLConfig(**SMALL, multipliers=(1, 2), mid_attention="none"),
    "kl-f4": KLConfig(**SMALL, multipliers=(1, 2, 2)),
    "kl-f8": KLConfig(**SMALL, multipliers=(1, 1, 2, 2), embed_channels=2),
    "kl-f8-like-f32": KLConfig(**SMALL, multipliers=(1, 1, 1, 2), attention=(4, 8)),
    "vq-f2": VQConfig(**SMALL, codes=16, multipliers=(1, 2)),
    "vq-f4": VQConfig(**SMALL, codes=16, multipliers=(1, 2, 2), mid_attention="none"),
    "vq-f4-linear": VQConfig(**SMALL, codes=16, multipliers=(1, 2, 2), mid_attention="linear"),
    "vq-f8": VQConfig(**SMALL, codes=16, multipliers=(1, 1, 2, 2), attention=(8,)),
}


def first_stage(name):
    """With random weights, also of the norms, and statistics."""
    torch.manual_seed(0)
    stage = build_first_stage(STAGES[name]).eval()
    with torch.no_grad():
        for module in stage.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    stage.set_statistics(torch.full((stage.channels,), 0.1), torch.tensor(0.3))
    return stage


@pytest.mark.parametrize("name", STAGES)
def test_tiles_give_what_the_whole_gives(name):
    """Two images at once, of different contrast: each has its own statistics. A hundredth of what 2/255 would be."""
    stage = first_stage(name)
    z = torch.randn(2, stage.channels, 9, 19, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    z[:, :, :, :8] = 2.0  # a side without structure, whose own statistics would be far from those of the whole
    with torch.no_grad():
        image = stage.decode(z)
        torch.testing.assert_close(stage.decode(z, in_tiles(5)), image, rtol=0, atol=1e-4)
        x = image.clamp(-1, 1)
        torch.testing.assert_close(stage.encode_raw(x, in_tiles(5)), stage.encode_raw(x), rtol=0, atol=1e-4)


def test_statistics_of_each_tile_alone_would_be_another_picture():
    stage = first_stage("kl-f4")
    z = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    z[:, :, :8, :8] = 2.0
    with torch.no_grad():
        difference = (stage.decode(z[:, :, :8, :8]) - stage.decode(z)[:, :, :32, :32])[:, :, :16, :16]
    assert difference.abs().max() > 0.1


def test_what_fits_one_tile_is_run_as_it_is():
    stage = first_stage("vq-f4")
    z = torch.randn(1, 3, 6, 8)
    with torch.no_grad():
        assert torch.equal(stage.decode(z, in_tiles(8)), stage.decode(z))
        x = torch.randn(1, 3, 24, 32)
        assert torch.equal(stage.encode_raw(x, in_tiles(8)), stage.encode_raw(x))


def test_pixels_have_no_tiles():
    stage = build_first_stage(IdentityConfig())
    x = torch.randn(1, 3, 9, 7)
    assert torch.equal(stage.decode(stage.to_latent(stage.encode_raw(x, in_tiles(2))), in_tiles(2)), x)


def test_bfloat16_stays_within_its_own_rounding():
    stage = first_stage("kl-f4")
    z = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tiles = stage.decode(z, in_tiles(4)).float()
    with torch.no_grad():
        assert (tiles - stage.decode(z)).abs().max() < 0.1


CHAINS = {
    "decoder": [nn.Conv2d(2, 4, 3, padding=1), ResnetBlock(4, 4, groups=2), Upsample(4), ResnetBlock(4, 4, groups=2), Upsample(4)],
    "encoder": [nn.Conv2d(2, 4, 3, padding=1), ResnetBlock(4, 4, groups=2), Downsample(4, "after"), ResnetBlock(4, 4, groups=2)],
    "ends": [group_norm(2, FIRST_STAGE_EPS, 1), nn.Conv2d(2, 3, 1)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_reach_is_how_far_an_output_looks(name):
    """The furthest input pixel with a gradient; norms, which look everywhere, are left out."""
    torch.manual_seed(0)
    parts = CHAINS[name]
    x = torch.randn(1, 2, 48, 48, requires_grad=True)
    h = through(parts, x, lambda norm, h: h)
    scale = h.shape[3] / 48
    place = int(24 * scale)  # the first output of input pixel 24, whose neighbour to the left belongs to pixel 23
    h[:, :, :, place:].sum().backward()
    furthest = int(x.grad.abs().sum(dim=(0, 1, 2)).nonzero().min())
    left = 24 - furthest
    x.grad = None
    h = through(parts, x, lambda norm, h: h)
    h[:, :, :, :place].sum().backward()
    right = int(x.grad.abs().sum(dim=(0, 1, 2)).nonzero().max()) + 1 - 24
    assert max(left, right) == reach(parts)


def test_a_tile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="tile: 0 pixels of the latent are none"):
        in_tiles(0)
