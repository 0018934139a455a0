"""The latent diffusion model: golden end to end, what is trained and what is frozen, how a batch becomes a latent and a condition."""

import pytest
import torch
from safetensors.torch import load_file

from latentworks.checkpoints.compvis import load_compvis
from latentworks.conditioners import (
    LabelConditioner,
    LabelConfig,
    LayoutConfig,
    LowResConfig,
    MaskedImageConfig,
    SegmentationConfig,
    TextConditioner,
    TextConfig,
    build_conditioner,
)
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, KLAutoencoder, KLConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.types import Cond, Gives
from latentworks.unet import UNet, UNetConfig

SIZES = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(conditioners=(), prediction="eps") -> LatentDiffusion:
    first_stage = KLAutoencoder(KLConfig(channels=16, multipliers=(1, 2), blocks=1, latent_channels=3))
    first_stage.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor(0.5))
    unet = UNet(SIZES, 3, LatentDiffusion.sum_gives(conditioners))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    return LatentDiffusion(first_stage, unet, Process(ProcessConfig(prediction=prediction)), conditioners)


def label(**changes) -> LabelConditioner:
    return LabelConditioner(LabelConfig.parse({"classes": 3, "width": 16, **changes}))


def text() -> TextConditioner:
    return TextConditioner(TextConfig(width=16, layers=1, heads=2, head_channels=8, length=6, vocabulary=300))


@pytest.mark.parametrize("name", ["uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8"])
def test_golden(golden, name):
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml")
    io = load_file(golden / name / "io.safetensors")
    batch = {field: io[key] for field, key in (("tokens", "cond_tokens"), ("label", "cond_class"), ("image", "image")) if key in io}
    with torch.no_grad():
        z0 = model.latent(batch)
        eps = model(io["z_t"], io["t"], batch)
        x0 = model.predict(io["z_t"], io["t"], model.condition(batch))
    for ours, reference in ((z0, io["z0"]), (model.encode(io["image"]), io["z0"]), (eps, io["eps_ema"])):
        assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()
    alpha, sigma = model.process.at(io["t"])
    expected = (io["z_t"] - sigma * io["eps_ema"]) / alpha
    assert (x0 - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_latent_comes_from_the_nearest_source():
    model = small()
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    raw = model.first_stage.encode_raw(image)
    torch.testing.assert_close(model.latent({"image": image}), model.encode(image))
    torch.testing.assert_close(model.encode(image, normalised=False), raw[:, :3])
    torch.testing.assert_close(model.latent({"raw": raw, "image": torch.zeros(2, 3, 8, 8)}), model.encode(image))
    given = torch.randn(2, 3, 4, 4)
    assert model.latent({"latent": given, "raw": raw}) is given
    noise = torch.randn(2, 3, 4, 4)
    sample = model.latent({"image": image}, lambda like: noise)
    torch.testing.assert_close(sample, model.first_stage.to_latent(raw, lambda like: noise))
    assert not model.latent({"image": image}).requires_grad
    with pytest.raises(ValueError, match=r"^image: the batch has neither"):
        model.latent({"label": torch.zeros(1)})


def test_only_unet_and_conditioners_are_trained():
    model = small([label(), text()])
    model.train()
    assert not model.first_stage.training
    assert model.unet.training
    assert all(conditioner.training for conditioner in model.conditioners)
    x, t, batch = torch.randn(2, 3, 4, 4), torch.tensor([5, 700]), {"label": torch.tensor([0, 2]), "tokens": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    model(x, t, batch).square().sum().backward()
    for name, p in model.named_parameters():
        trained = not name.startswith("first_stage.")
        assert p.requires_grad == trained, name
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == trained, name


def test_conditions_are_dropped_where_asked_in_both_paths():
    model = small([label()]).eval()
    torch.nn.init.normal_(model.unet.middle[0].attention.proj_out.weight, std=0.1)
    where = torch.tensor([False, True])
    batch, null = {"label": torch.tensor([1, 1])}, {"label": torch.tensor([1, 3])}
    assert torch.equal(model.condition(batch, where).context, model.condition(null).context)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([5, 700])
    assert torch.equal(model(x, t, batch, where), model(x, t, null))
    assert not torch.allclose(model(x, t, batch, where), model(x, t, batch))
    assert small().condition({}) == Cond()
    assert small().condition({}, where) == Cond()


def test_several_conditioners_join():
    conditioners = [label(), text(), label(route="vector", width=128)]
    assert LatentDiffusion.sum_gives(conditioners) == Gives(context=16, vector=128)
    model = small(conditioners)
    cond = model.condition({"label": torch.tensor([0, 1]), "tokens": torch.zeros(2, 6, dtype=torch.long)})
    assert cond.context.shape == (2, 7, 16)
    assert cond.vector.shape == (2, 128)
    assert model.predict(torch.randn(2, 3, 4, 4), torch.tensor([1, 2]), cond).shape == (2, 3, 4, 4)


def test_conditions_of_every_kind_reach_the_unet_and_can_be_dropped():
    sizes = {"width": 16, "layers": 1, "heads": 2, "head_channels": 8, "length": 8, "vocabulary": 100}
    configs = [
        LabelConfig(classes=3, width=128, route="vector"),
        LayoutConfig(classes=3, **sizes),
        SegmentationConfig(classes=3, stages=1),
        LowResConfig(),
        MaskedImageConfig(convention="sd"),
    ]
    model = small([build_conditioner(config) for config in configs]).eval()
    assert model.unet.gives == Gives(concat=3 + 3 + 4, context=16, vector=128)
    batch = {
        "label": torch.tensor([0, 1]),
        "boxes": [[{"x": 0.1, "y": 0.1, "width": 0.5, "height": 0.5, "label": 2}]] * 2,
        "segmentation": torch.randint(3, (2, 8, 8)),
        "low_res": torch.randn(2, 3, 4, 4),
        "mask": torch.rand(2, 1, 8, 8) > 0.5,
        "image": torch.rand(2, 3, 8, 8),
    }
    cond, dropped = model.condition(batch), model.condition(batch, torch.tensor([False, True]))
    assert model.predict(torch.randn(2, 3, 4, 4), torch.tensor([1, 2]), cond).shape == (2, 3, 4, 4)
    for kept, none in zip(cond, dropped, strict=True):
        torch.testing.assert_close(kept[0], none[0])
        assert not torch.allclose(kept[1], none[1])
    for field in ("label", "boxes", "segmentation", "low_res", "mask"):
        with pytest.raises(ValueError, match=f"^{field}: "):
            model.condition({name: value for name, value in batch.items() if name != field}, torch.tensor([False, True]))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_predict_is_float32_x0_under_autocast(prediction):
    model = small(prediction=prediction)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([5, 999])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        x0 = model.predict(x, t, Cond())
        expected = model.process.to_x0(model(x, t, {}), x, t)
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, expected)


def test_pixel_space():
    first_stage = build_first_stage(IdentityConfig(in_channels=3))
    model = LatentDiffusion(first_stage, UNet(SIZES, 3, Gives()), Process(ProcessConfig()))
    image = torch.randn(1, 3, 4, 4)
    assert torch.equal(model.latent({"image": image}), image)


def test_state_dict_round_trip_carries_statistics():
    one, other = small([label()]), small([label()])
    other.first_stage.set_statistics(torch.zeros(3), torch.ones(()))
    other.load_state_dict(one.state_dict(), strict=True)
    assert float(other.first_stage.std) == 0.5


def test_parts_that_do_not_fit_are_named():
    first_stage, process = build_first_stage(IdentityConfig(in_channels=4)), Process(ProcessConfig())
    with pytest.raises(ValueError, match="denoises 3 channels, but the first stage's latents have 4"):
        LatentDiffusion(first_stage, UNet(SIZES, 3, Gives()), process)
    with pytest.raises(ValueError, match="built for Gives"):
        LatentDiffusion(first_stage, UNet(SIZES, 4, Gives()), process, [label()])
    with pytest.raises(ValueError, match=r"^context: conditioners of widths \[8, 16\]"):
        LatentDiffusion.sum_gives([label(), label(width=8)])
