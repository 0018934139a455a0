"""The UNet against the authors' numbers and keys, and its own contract."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file
from torch import nn

from latentworks.checkpoints.compvis import load_compvis
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.nn.attention import AttentionBlock
from latentworks.types import Cond, Gives
from latentworks.unet import UNet, UNetConfig, time_embedding

TINY = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomise(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return module


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["uncond-vq-f4", "class-crossattn-vq-f4", "text-crossattn-kl-f8"])
def test_golden(golden, name, grad, ema):
    model = load_compvis(golden / name / "model.ckpt", golden / name / "config.yaml", ema=ema)
    io = load_file(golden / name / "io.safetensors")
    with torch.set_grad_enabled(grad):
        eps = model.unet(io["z_t"], io["t"], Cond(context=io.get("context")))
    reference, other = (io["eps_ema"], io["eps_raw"]) if ema else (io["eps_raw"], io["eps_ema"])
    assert (eps - reference).abs().max() <= 1e-4 * reference.abs().max()
    assert (eps - other).abs().max() > 1e-2 * other.abs().max()


CONFIGS = {
    "celeba256": (UNetConfig(channels=224, multipliers=(1, 2, 3, 4), head_channels=32), 3, Gives()),
    "lsun_churches256": (
        UNetConfig(channels=192, multipliers=(1, 2, 2, 4, 4), attention=(1, 2, 4, 8), heads=8, scale_shift=True, resblock_updown=True),
        4,
        Gives(),
    ),
    "cin256": (UNetConfig(channels=256, multipliers=(1, 2, 4), attention=(4, 2, 1), heads=1), 4, Gives(context=512)),
    "cin256-v2": (UNetConfig(channels=192, multipliers=(1, 2, 3, 5), heads=1), 3, Gives(context=512)),
    "text2img256": (UNetConfig(heads=1), 3, Gives(context=640)),
    "txt2img-1p4B-eval": (UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8), 4, Gives(context=1280)),
    "v1-inference": (UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8), 4, Gives(context=768)),
    "layout2img-openimages256": (UNetConfig(channels=128, multipliers=(1, 2, 3, 4), heads=1, depth=3), 3, Gives(context=512)),
    "bsr_sr": (UNetConfig(channels=160, multipliers=(1, 2, 2, 4), attention=(8,)), 3, Gives(concat=3)),
    "inpainting_big": (UNetConfig(channels=256, multipliers=(1, 2, 3, 4), heads=8, resblock_updown=True), 3, Gives(concat=4)),
    "semantic_synthesis256": (UNetConfig(channels=128, multipliers=(1, 4, 8), attention=(), heads=8), 3, Gives(concat=3)),
    "768x768": (UNetConfig(channels=448, multipliers=(1, 2, 3, 4), attention=(4, 2, 1)), 16, Gives(context=768)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_map_one_to_one_onto_the_authors_keys(golden, name):
    lines = (golden.parent / "reference" / "keys" / f"keys_unet_{name}.txt").read_text().splitlines()
    theirs = dict(line.split("\t") for line in lines)
    with torch.device("meta"):
        unet = UNet(*CONFIGS[name])
    shapes = {key: str(tuple(value.shape)) for key, value in unet.state_dict().items()}
    assert {theirs: shapes[ours] for ours, theirs in authors_keys(unet).items()} == theirs
    assert authors_keys(unet).keys() == shapes.keys()


def test_time_embedding_equals_diffusers():
    t = torch.tensor([0, 1, 500, 999])
    expected = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(time_embedding(t, 64), expected)


def test_a_fresh_unet_predicts_zero():
    unet = UNet(TINY, 3, Gives())
    assert unet(torch.randn(2, 3, 4, 4), torch.tensor([1, 2]), Cond()).abs().max() == 0


ROUTES = Gives(concat=2, context=6, vector=128)


def full_cond(b: int = 2, size: int = 4) -> Cond:
    return Cond(torch.randn(b, 2, size, size), torch.randn(b, 5, 6), torch.randn(b, 128))


@pytest.mark.parametrize(
    "changes",
    [{}, {"scale_shift": True}, {"resblock_updown": True}, {"conv_resample": False}, {"blocks": (2, 1)}, {"dropout": 0.1}, {"depth": 2}],
)
def test_every_route_and_option_matters_and_every_weight_gets_a_gradient(changes):
    unet = randomise(UNet(TINY.replace(**changes), 3, ROUTES)).eval()
    x, t, cond = torch.randn(2, 3, 4, 4), torch.tensor([3, 900]), full_cond()
    out = unet(x, t, cond)
    assert out.shape == x.shape
    for route in Cond._fields:
        assert not torch.allclose(out, unet(x, t, cond._replace(**{route: torch.zeros_like(getattr(cond, route))})))
    assert not torch.allclose(out, unet(x, t + 50, cond))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())


def test_images_do_not_see_their_neighbours():
    unet = randomise(UNet(TINY, 3, ROUTES)).eval()
    x, t, cond = (
        torch.randn(3, 3, 4, 6),
        torch.tensor([3, 900, 10]),
        Cond(torch.randn(3, 2, 4, 6), torch.randn(3, 5, 6), torch.randn(3, 128)),
    )
    with torch.no_grad():
        alone = unet(x[1:2], t[1:2], Cond(*(route[1:2] for route in cond)))
        torch.testing.assert_close(unet(x, t, cond)[1:2], alone, rtol=1e-5, atol=1e-5)


def test_autocast_gives_float32_close_to_float32():
    unet = randomise(UNet(TINY, 3, ROUTES))
    x, t, cond = torch.randn(2, 3, 4, 4), torch.tensor([3, 900]), full_cond()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = unet(x, t, cond)
    exact = unet(x, t, cond)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_missing_superfluous_or_misfitting_route_is_named():
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([3, 900])
    unet, plain = UNet(TINY, 3, ROUTES), UNet(TINY, 3, Gives())
    cond = full_cond()
    for route in Cond._fields:
        with pytest.raises(ValueError, match=f"^{route}: this UNet was built for a condition"):
            unet(x, t, cond._replace(**{route: None}))
        with pytest.raises(ValueError, match=f"^{route}: .*takes none"):
            plain(x, t, Cond(**{route: getattr(cond, route)}))
    with pytest.raises(ValueError, match=r"^context: a condition 7 wide"):
        unet(x, t, cond._replace(context=torch.randn(2, 5, 7)))
    with pytest.raises(ValueError, match=r"^concat: its size"):
        unet(x, t, cond._replace(concat=torch.randn(2, 2, 8, 8)))
    with pytest.raises(ValueError, match="4 channels, but this UNet denoises latents of 3"):
        plain(torch.randn(1, 4, 4, 4), t[:1], Cond())
    with pytest.raises(ValueError, match="5x4 cannot be halved"):
        plain(torch.randn(1, 3, 5, 4), t[:1], Cond())


def test_the_attention_order_reaches_every_block():
    unet = UNet(TINY.replace(attention_order="qkv"), 3, Gives())
    orders = {module.order for module in unet.modules() if isinstance(module, AttentionBlock)}
    assert orders == {AttentionBlock(32, 2, order="qkv").order} != {AttentionBlock(32, 2).order}


def test_a_vector_must_be_as_wide_as_the_time_embedding():
    with pytest.raises(ValueError, match=r"^vector: .*128"):
        UNet(TINY, 3, Gives(vector=64))


def test_heads():
    assert UNetConfig(channels=64).heads_of(128) == 4
    assert UNetConfig(channels=64, head_channels=16).heads_of(128) == 8
    assert UNetConfig(channels=64, heads=8).heads_of(128) == 8
    assert UNetConfig.parse(UNetConfig(heads=4).model_dump()) == UNetConfig(heads=4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": 33}, "channels"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (0, 1)}, "multipliers"),
        ({"blocks": 0}, "blocks"),
        ({"blocks": (1, 2)}, "blocks"),
        ({"attention": (3,)}, r"attention: 3 is not .*\[1, 2, 4, 8\]"),
        ({"heads": 0}, "heads"),
        ({"heads": 7}, "heads: 7 do not divide"),
        ({"head_channels": 100}, "head_channels: 100 do not divide"),
        ({"heads": 4, "head_channels": 32}, "give one of them"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1}, "dropout"),
        ({"attention_order": "new"}, "attention_order"),
        ({"scale_shfit": True}, "did you mean 'scale_shift'"),
    ],
)
def test_config_names_bad_values(bad, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.parse(bad)
