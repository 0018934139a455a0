"""Folded statistics: the same images and posteriors, on latents of zero mean and unit variance; what was folded is known again."""

import pytest
import torch

from latentworks.checkpoints.fold import FOLDED, fold, unfold
from latentworks.first_stage import KLConfig, VQConfig, build_first_stage

SIZES = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "groups": 4}
BOTH = pytest.mark.parametrize("config", [KLConfig(**SIZES), VQConfig(**SIZES, codes=16)], ids=["kl", "vq"])
MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor(1.7)


def random(config):
    torch.manual_seed(0)
    model = build_first_stage(config).eval()
    if config.kind == "vq":
        torch.nn.init.normal_(model.quantizer.codebook)
    return model


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folding_moves_the_latents_and_nothing_else(config, dtype):
    """In float32 they differ by what two ways through a network round otherwise; in float64 that is gone, but encodings come in float32."""
    before, after = random(config).to(dtype), build_first_stage(config).eval().to(dtype)
    after.load_state_dict(before.state_dict() | fold(before.state_dict(), MEAN, STD))
    before.set_statistics(MEAN, STD)
    after.set_statistics(torch.zeros(3), torch.ones(()))
    image = torch.rand(2, 3, 16, 16, dtype=dtype) * 2 - 1
    raw_before, raw_after = before.encode_raw(image), after.encode_raw(image)
    noise = torch.randn(2, 3, 8, 8)
    z = before.to_latent(raw_before, lambda _: noise)
    torch.testing.assert_close(after.to_latent(raw_after, lambda _: noise), z, atol=1e-6, rtol=1e-6)
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    z = z.to(dtype)
    torch.testing.assert_close(after.decode(z), before.decode(z), atol=rounding, rtol=rounding)


def test_nothing_to_fold_changes_no_bit():
    weights = random(KLConfig(**SIZES)).state_dict()
    for key, value in fold(weights, torch.zeros(3), torch.ones(())).items():
        assert torch.equal(value, weights[key])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_the_very_weights_that_were_folded_come_back(config, dtype):
    weights = random(config).state_dict()
    kept = {key: weights[key] for key in FOLDED if key in weights} | {"mean": MEAN, "std": STD}
    folded = {key: value.to(dtype) for key, value in fold(weights, MEAN, STD).items()}
    back = unfold(folded | {"decoder.conv_in.bias": torch.ones(3)}, kept)
    assert back.keys() == kept.keys()
    assert all(back[key] is kept[key] for key in kept)
    for key in folded:
        changed = folded[key].clone()
        changed.view(-1)[-1] += 0.01
        assert unfold(folded | {key: changed}, kept) == {}
    for key in kept:
        assert unfold(folded, {other: value for other, value in kept.items() if other != key}) == {}
        assert unfold(folded, kept | {key: kept[key].expand(2, *kept[key].shape)}) == {}
        assert unfold(folded, kept | {key: kept[key].int()}) == {}
    assert unfold(folded, kept | {"more": STD}) == {}
    assert unfold(folded, kept | {"std": torch.tensor(float("nan"))}) == {}
