"""Folded statistics: the same images and posteriors, on latents of zero mean and unit variance."""

import pytest
import torch

from latentworks.checkpoints.fold import fold
from latentworks.first_stage import KLConfig, VQConfig, build_first_stage

SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "groups": 4}
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor(1.7)


@pytest.mark.parametrize("config", [KLConfig(**SIZES), VQConfig(**SIZES, codes=16)], ids=["kl", "vq"])
def test_folding_moves_the_latents_and_nothing_else(config):
    torch.manual_seed(0)
    before, after = build_first_stage(config).eval(), build_first_stage(config).eval()
    if config.kind == "vq":
        torch.nn.init.normal_(before.quantizer.codebook)
    after.load_state_dict(before.state_dict() | fold(before, MEAN, STD))
    before.set_statistics(MEAN, STD)
    after.set_statistics(torch.zeros(3), torch.ones(()))
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    raw_before, raw_after = before.encode_raw(image), after.encode_raw(image)
    noise = torch.randn(2, 3, 8, 8)
    z = before.to_latent(raw_before, lambda _: noise)
    torch.testing.assert_close(after.to_latent(raw_after, lambda _: noise), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.decode(z), before.decode(z), atol=1e-5, rtol=1e-5)


def test_nothing_to_fold_changes_no_bit():
    torch.manual_seed(0)
    model = build_first_stage(KLConfig(**SIZES))
    for key, value in fold(model, torch.zeros(3), torch.ones(())).items():
        assert torch.equal(value, model.state_dict()[key])
