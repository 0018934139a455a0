"""First stages against the authors' numbers and keys, closed forms and their own contract."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentworks.checkpoints.compvis import load_compvis
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.first_stage import IdentityConfig, IdentityFirstStage, KLAutoencoder, KLConfig, VQAutoencoder, VQConfig, build_first_stage
from latentworks.first_stage.autoencoder import AutoencoderConfig

SMALL = {"channels": 16, "blocks": 1}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def near(ours: Tensor, reference: Tensor, tolerance: float = 1e-4) -> None:
    """Within the tolerance the reference numbers ask for: a share of the largest value."""
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("name", ["uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8"])
def test_golden(golden, name):
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml")
    io = load_file(golden / name / "io.safetensors")
    first_stage = model.first_stage
    with torch.no_grad():
        raw = first_stage.encode_raw(io["image"])
        if "encoded" in io:
            near(raw, io["encoded"])
        else:
            mean, logvar = raw.chunk(2, dim=1)
            near(mean, io["posterior_mean"])
            near(logvar.clamp(-30, 20), io["posterior_logvar"])
        near(first_stage.to_latent(raw), io["z0"])
        near(first_stage.decode(io["z0"]), io["decoded"])
        near(first_stage.decode(io["ddim10"]), io["ddim10_decoded"])


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_training_forward_gives_the_authors_losses(golden, kind):
    """The reconstruction and the regulariser of step 0 of the authors' GAN runs."""
    init = load_file(golden / "training" / f"first-stage-{kind}-gan.init.safetensors")
    record = load_file(golden / "training" / f"first-stage-{kind}-gan.safetensors")
    sizes = {"channels": 32, "multipliers": (1, 1, 2), "blocks": 1, "latent_channels": 4}
    model = build_first_stage(KLConfig(**sizes) if kind == "kl" else VQConfig(**sizes, codes=32, legacy=True))
    names = authors_keys(model)
    assert set(names.values()) == {key for key in init if not key.startswith("loss.")}
    model.load_state_dict({ours: init[theirs] for ours, theirs in names.items()}, strict=False)
    image = record["step0.image"]
    out = model(image, (lambda like: record["step0.posterior_noise0"]) if kind == "kl" else None)
    l1 = (out.image - image).abs().mean()
    torch.testing.assert_close(l1, record["log.opt0.train/rec_loss"][0], rtol=1e-5, atol=0)
    theirs = record["log.opt0.train/kl_loss" if kind == "kl" else "log.opt0.train/quant_loss"][0]
    torch.testing.assert_close(out.regulariser, theirs, rtol=1e-5, atol=0)


FAMILY = {
    "kl-f4": KLConfig(multipliers=(1, 2, 4), latent_channels=3),
    "kl-f8": KLConfig(multipliers=(1, 2, 4, 4), latent_channels=4),
    "kl-f16": KLConfig(multipliers=(1, 1, 2, 2, 4), latent_channels=16, attention=(16,)),
    "kl-f32": KLConfig(multipliers=(1, 1, 2, 2, 4, 4), latent_channels=64, attention=(16, 32)),
    "vq-f4": VQConfig(),
    "vq-f4-noattn": VQConfig(mid_attention="none"),
    "vq-f8": VQConfig(multipliers=(1, 2, 2, 4), latent_channels=4, codes=16384, attention=(8,)),
    "vq-f8-n256": VQConfig(multipliers=(1, 2, 2, 4), latent_channels=4, codes=256, attention=(8,)),
    "vq-f16": VQConfig(multipliers=(1, 1, 2, 2, 4), latent_channels=8, codes=16384, attention=(16,)),
}


@pytest.mark.parametrize("name", FAMILY)
def test_weights_map_one_to_one_onto_the_authors_keys(golden, name):
    lines = (golden.parent / "reference" / "keys" / f"keys_fs_{name}.txt").read_text().splitlines()
    theirs = dict(line.split("\t") for line in lines)
    with torch.device("meta"):
        model = build_first_stage(FAMILY[name])
    shapes = {key: str(tuple(value.shape)) for key, value in model.state_dict().items()}
    assert {theirs: shapes[ours] for ours, theirs in authors_keys(model).items()} == theirs
    assert shapes.keys() - authors_keys(model).keys() <= {"mean", "std", "quantizer.counts"}


@pytest.mark.parametrize("f", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("config", [KLConfig, VQConfig])
def test_every_factor_and_channel_count(config, f):
    multipliers = (1,) * (f.bit_length())
    model = build_first_stage(config(channels=8, blocks=1, multipliers=multipliers, in_channels=5, latent_channels=2, attention=(f,)))
    assert (model.factor, model.channels, model.in_channels) == (f, 2, 5)
    x = torch.randn(2, 5, 2 * f, f)
    model.set_statistics(torch.tensor([0.5, -1.0]), torch.tensor(2.0))
    assert model.to_latent(model.encode_raw(x)).shape == (2, 2, 2, 1)
    assert model(x).image.shape == x.shape
    if f > 1:
        with pytest.raises(ValueError, match=f"height {2 * f + 1} is not divisible"):
            model.encode_raw(torch.randn(1, 5, 2 * f + 1, f))


def test_embedding_may_differ_from_the_encoders_channels():
    for config in (KLConfig(**SMALL, latent_channels=4, embed_channels=2), VQConfig(**SMALL, latent_channels=4, embed_channels=2, codes=9)):
        model = build_first_stage(config)
        model.set_statistics(torch.zeros(2), torch.ones(()))
        assert model.channels == 2
        assert model.decode(torch.randn(1, 2, 2, 2)).shape == (1, 3, 8, 8)
        assert model(torch.randn(1, 3, 8, 8)).image.shape == (1, 3, 8, 8)


def test_kl_regulariser_equals_torch_distributions():
    model = KLAutoencoder(KLConfig(**SMALL, latent_channels=2))
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    mean, logvar = model.encode_raw(x).chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(model(x).regulariser, expected)


def test_kl_posterior_sample_and_clamp():
    model = KLAutoencoder(KLConfig(**SMALL, latent_channels=1))
    model.set_statistics(torch.tensor([3.0]), torch.tensor(2.0))
    raw = torch.tensor([[[[1.0, 1.0]], [[-100.0, 100.0]]]])
    noise = torch.ones(1, 1, 1, 2)
    torch.testing.assert_close(model.to_latent(raw), torch.full((1, 1, 1, 2), -1.0))
    sample = model.to_latent(raw, lambda like: noise)
    torch.testing.assert_close(sample, (1 + torch.tensor([[[[-15.0, 10.0]]]]).exp() - 3) / 2)


def test_kl_gradients_reach_every_weight_and_the_noise_scales_the_spread():
    model = KLAutoencoder(KLConfig(**SMALL))
    out = model(torch.randn(2, 3, 8, 8), torch.randn_like)
    (out.image.square().mean() + out.regulariser).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_vq_decodes_on_the_codebooks_scale_and_passes_gradients_in_eval_mode():
    model = VQAutoencoder(VQConfig(**SMALL, latent_channels=2, codes=5)).eval()
    model.set_statistics(torch.tensor([0.1, -0.1]), torch.tensor(0.05))
    codes = torch.randint(5, (1, 2, 2), generator=torch.Generator().manual_seed(0))
    exact = model.quantizer.lookup(codes)
    z = model.normalise(exact + 1e-6).detach().requires_grad_()
    expected = model.decoder(model.post_quant_conv(exact))
    torch.testing.assert_close(model.decode(z), expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(model.decode(z).sum(), z)
    assert grad.abs().sum() > 0
    out = model(torch.randn(1, 3, 8, 8))
    assert out.codes is not None
    assert out.codes.shape == (1, 2, 2)


def test_vq_gradients_reach_every_weight():
    model = VQAutoencoder(VQConfig(**SMALL, codes=6))
    out = model(torch.randn(2, 3, 8, 8))
    (out.image.square().mean() + out.regulariser).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("config", [KLConfig(**SMALL), VQConfig(**SMALL)])
def test_without_statistics_latents_are_refused(config):
    model = build_first_stage(config)
    with pytest.raises(ValueError, match="no latent statistics"):
        model.to_latent(torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="no latent statistics"):
        model.decode(torch.zeros(1, 3, 2, 2))
    model.set_statistics(torch.randn(3), torch.tensor(1.7))
    z = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(model.normalise(model.unnormalise(z)), z)


@pytest.mark.parametrize("config", [KLConfig(**SMALL), VQConfig(**SMALL)])
def test_autocast_keeps_latents_in_float32(config):
    model = build_first_stage(config)
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.encode_raw(x)
    assert low.dtype == torch.float32
    near(low, model.encode_raw(x).detach(), 0.05)


def test_last_layer_is_the_decoders_last_convolution():
    for config in (KLConfig(**SMALL), VQConfig(**SMALL)):
        model = build_first_stage(config)
        assert model.last_layer is model.decoder.conv_out.weight


def test_identity():
    model = build_first_stage(IdentityConfig(in_channels=2))
    assert isinstance(model, IdentityFirstStage)
    x = torch.randn(1, 2, 3, 5)
    assert torch.equal(model.decode(model.to_latent(model.encode_raw(x))), x)
    assert torch.equal(model(x).image, x)
    assert model(x).regulariser == 0
    assert model.factor == 1
    with pytest.raises(ValueError, match="no parameters"):
        _ = model.last_layer


def test_mid_attention_kinds_change_the_weights():
    counts = [len(KLAutoencoder(KLConfig(**SMALL, mid_attention=kind)).state_dict()) for kind in ("none", "linear", "full")]
    assert counts[0] < counts[1] < counts[2]
    x = torch.randn(1, 3, 8, 8)
    assert KLAutoencoder(KLConfig(**SMALL, mid_attention="linear"))(x).image.shape == x.shape


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"attention": (3,)}, r"attention: 3 is not a down-sampling factor.*\[1, 2, 4\]"),
        ({"attention": (8,)}, "attention: 8"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"channels": 0}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"embed_channels": 0}, "embed_channels"),
        ({"in_channels": 0}, "in_channels"),
        ({"dropout": 1.0}, "dropout"),
        ({"mid_attention": "some"}, "mid_attention"),
        ({"latent_chanels": 4}, "did you mean 'latent_channels'"),
    ],
)
def test_config_names_bad_values(bad, message):
    for config in (AutoencoderConfig, KLConfig, VQConfig):
        with pytest.raises(ValueError, match=message):
            config.parse(bad)


@pytest.mark.parametrize("bad", [{"codes": 0}, {"beta": -1.0}])
def test_vq_config_names_bad_values(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        VQConfig.parse(bad)
    with pytest.raises(ValueError, match="in_channels"):
        IdentityConfig.parse({"in_channels": 0})


@pytest.mark.parametrize("config", [KLConfig(**SMALL), VQConfig(**SMALL, codes=8)])
def test_a_decoder_of_the_same_latents_is_taken_and_no_other(config):
    torch.manual_seed(0)
    ours, other = build_first_stage(config), build_first_stage(config)
    with pytest.raises(ValueError, match="make other latents"):
        ours.take_decoder(other)
    other.load_state_dict(ours.state_dict())
    ours.set_statistics(torch.ones(ours.channels), torch.tensor(2.0))
    with torch.no_grad():
        other.decoder.conv_out.weight += 1
    other.set_statistics(torch.zeros(ours.channels), torch.ones(()))
    ours.take_decoder(other)
    assert torch.equal(ours.decoder.conv_out.weight, other.decoder.conv_out.weight)
    assert float(ours.std) == 2, "statistics are those it has"
