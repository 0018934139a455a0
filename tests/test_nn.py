"""Blocks, attention, text transformer, quantiser and discriminator, against diffusers, closed forms and the authors' numbers."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latentworks.nn.attention import Attention, AttentionBlock, AttnBlock, LinearAttnBlock, SpatialTransformer, attend
from latentworks.nn.blocks import Downsample, ResBlock, ResnetBlock, Upsample, group_norm
from latentworks.nn.discriminator import Discriminator, DiscriminatorConfig
from latentworks.nn.quantizer import DISTANCES, VectorQuantizer
from latentworks.nn.transformer import Neighbours, TextTransformer, TextTransformerConfig


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that zero-initialised layers show."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.1)
    return module


def copy_by_name(source: nn.Module, target: nn.Module, names: dict[str, str]) -> None:
    state = source.state_dict()
    renamed = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[key] = value
    target.load_state_dict(renamed, strict=True)


def test_group_norm_falls_back_to_a_divisor_for_narrow_nets():
    assert [group_norm(c, 1e-6).num_groups for c in (128, 48, 12, 7)] == [32, 16, 4, 1]


@pytest.mark.parametrize("out", [32, 64])
def test_resnet_block_equals_diffusers(out):
    ours = randomise(ResnetBlock(32, out))
    theirs = ResnetBlock2D(in_channels=32, out_channels=out, temb_channels=None, eps=1e-6, groups=32)
    copy_by_name(ours, theirs, {"skip": "conv_shortcut"})
    x = torch.randn(2, 32, 6, 8)
    torch.testing.assert_close(ours(x), theirs(x, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_unet_block_equals_diffusers(scale_shift, resample):
    ours = randomise(ResBlock(32, 16, 64, scale_shift=scale_shift, resample=resample))
    sizes = {"in_channels": 32, "out_channels": 64, "temb_channels": 16, "groups": 32, "eps": 1e-5}
    norm = "scale_shift" if scale_shift else "default"
    theirs = ResnetBlock2D(**sizes, time_embedding_norm=norm, up=resample == "up", down=resample == "down")
    copy_by_name(ours, theirs, {"skip": "conv_shortcut", "emb": "time_emb_proj"})
    x, emb = torch.randn(2, 32, 6, 8), torch.randn(2, 16)
    torch.testing.assert_close(ours(x, emb), theirs(x, emb), rtol=1e-5, atol=1e-5)


def test_a_fresh_unet_block_and_transformer_are_identities():
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(ResBlock(32, 8, 32)(x, torch.randn(2, 8)), x)
    torch.testing.assert_close(SpatialTransformer(32, 2, 16)(x, torch.randn(2, 3, 16)), x)
    torch.testing.assert_close(AttentionBlock(32, 2)(x), x)


def test_first_stage_downsampling_pads_right_and_below_the_unets_all_round():
    x = torch.randn(1, 2, 4, 4)
    after, around = Downsample(2, "after"), Downsample(2, "around")
    around.load_state_dict(after.state_dict())
    torch.testing.assert_close(after(x), F.conv2d(F.pad(x, (0, 1, 0, 1)), after.conv.weight, after.conv.bias, stride=2))
    torch.testing.assert_close(around(x), F.conv2d(F.pad(x, (1, 1, 1, 1)), around.conv.weight, around.conv.bias, stride=2))
    assert not torch.allclose(after(x), around(x))
    torch.testing.assert_close(Downsample(2, "around", conv=False)(Upsample(2, conv=False)(x)), x)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_attend_equals_the_formula_on_both_kernels(needs_grad, pixels):
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    if pixels:  # whose channels come first in memory
        q, k, v = (x.mT.contiguous().mT for x in (q, k, v))
    expected = torch.einsum("bhlm,bhmd->bhld", (torch.einsum("bhld,bhmd->bhlm", q, k) * 0.3).softmax(-1), v)
    torch.testing.assert_close(attend(q.requires_grad_(needs_grad), k, v, 0.3), expected)


def test_pixels_are_drawn_by_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 4, 7).mT for _ in range(3))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError):  # memory as large as the scores, and slow
        F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend(q, k, v, 0.5)


def test_attend_gives_the_same_gradients_on_both_kernels(monkeypatch):
    grads = []
    for limit in (0, 1 << 20):
        monkeypatch.setattr("latentworks.nn.attention.EXPLICIT_SCORES", limit)
        torch.manual_seed(0)
        inputs = [torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3)]
        attend(*inputs, 0.5).square().sum().backward()
        grads.append([x.grad for x in inputs])
    torch.testing.assert_close(grads[0], grads[1])


def test_spatial_transformer_equals_diffusers():
    ours = randomise(SpatialTransformer(64, heads=4, context_width=24, depth=2))
    sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 64, "num_layers": 2, "cross_attention_dim": 24}
    theirs = Transformer2DModel(**sizes, norm_num_groups=32)
    names = {"blocks.": "transformer_blocks.", "self_attention.": "attn1.", "cross_attention.": "attn2."}
    names |= {f"attn{i}.{x}.": f"attn{i}.to_{x}." for i in (1, 2) for x in "qkv"} | {f"attn{i}.out.": f"attn{i}.to_out.0." for i in (1, 2)}
    names |= {"feed_forward.proj_in": "ff.net.0.proj", "feed_forward.proj_out": "ff.net.2"}
    copy_by_name(ours, theirs, names)
    x, context = torch.randn(2, 64, 4, 6), torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x, context), theirs(x, encoder_hidden_states=context).sample, rtol=1e-4, atol=1e-5)


def test_one_headed_attention_blocks_agree_with_each_other():
    """The first stage's and the UNet's differ in eps and layout only."""
    first, unet = randomise(AttnBlock(32)), AttentionBlock(32, heads=1)
    unet.norm.eps = first.norm.eps
    qkv = {name: torch.cat([getattr(getattr(first, x), name) for x in "qkv"]).flatten(1 if name == "bias" else 2) if name == "weight"
           else torch.cat([getattr(getattr(first, x), name) for x in "qkv"]) for name in ("weight", "bias")}  # fmt: skip
    state = {f"norm.{n}": getattr(first.norm, n) for n in ("weight", "bias")} | {f"qkv.{n}": v for n, v in qkv.items()}
    unet.load_state_dict({**state, "proj_out.weight": first.proj_out.weight.flatten(2), "proj_out.bias": first.proj_out.bias})
    x = torch.randn(2, 32, 4, 3)
    torch.testing.assert_close(first(x), unet(x), rtol=1e-5, atol=1e-6)


def test_qkv_channels_are_ordered_head_first():
    """[head][q, k, v][channel]: head 0 alone depends on the first third of the channels of qkv (QKVAttentionLegacy)."""
    block = randomise(AttentionBlock(32, heads=2))
    nn.init.eye_(block.proj_out.weight[:, :, 0])
    x = torch.randn(1, 32, 2, 2)
    before = block(x)
    with torch.no_grad():
        block.qkv.weight[:48] += 1.0
    change = (block(x) - before).abs().amax(dim=(0, 2, 3))
    assert (change[:16] > 1e-4).all()
    assert (change[16:] < 1e-6).all()


@pytest.mark.parametrize("order", ["head", "qkv"])
def test_attention_block_equals_its_formula_head_by_head(order):
    """QKVAttentionLegacy and QKVAttention of openai/guided-diffusion, written with slices and loops."""
    c, heads = 12, 3
    block, d = randomise(AttentionBlock(c, heads, groups=4, order=order)), c // heads
    x = torch.randn(2, c, 2, 3)
    flat = x.flatten(2)
    qkv = torch.einsum("oc,bcl->bol", block.qkv.weight[:, :, 0], block.norm(flat)) + block.qkv.bias[:, None]
    out = []
    for head in range(heads):
        starts = [(3 * head + i) * d for i in range(3)] if order == "head" else [i * c + head * d for i in range(3)]
        q, k, v = (qkv[:, start : start + d] for start in starts)
        weights = torch.einsum("bdl,bdm->blm", q, k).div(d**0.5).softmax(-1)
        out.append(torch.einsum("blm,bdm->bdl", weights, v))
    projected = torch.einsum("oc,bcl->bol", block.proj_out.weight[:, :, 0], torch.cat(out, dim=1)) + block.proj_out.bias[:, None]
    torch.testing.assert_close(block(x), x + projected.view_as(x), rtol=1e-5, atol=1e-6)


def test_linear_attention_equals_its_formula():
    block = randomise(LinearAttnBlock(8))
    x = torch.randn(2, 8, 3, 4)
    q, k, v = block.qkv(x).flatten(2).chunk(3, dim=1)
    context = torch.einsum("bdn,ben->bde", k.softmax(dim=-1), v)
    expected = torch.einsum("bde,bdn->ben", context, q).view(2, 8, 3, 4)
    torch.testing.assert_close(block(x), block.out(expected), rtol=1e-5, atol=1e-6)


def test_attention_without_context_is_self_attention():
    attention = Attention(12, heads=3, head_channels=4)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x), attention(x, x))


def test_text_transformer_equals_pytorchs_pre_norm_encoder():
    config = TextTransformerConfig(width=16, layers=2, heads=2, head_channels=8, length=4, vocabulary=9)
    ours = randomise(TextTransformer(config))
    layer = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)
    own, state = ours.state_dict(), {}
    for i in range(2):
        a, f, to = f"layers.{2 * i}.", f"layers.{2 * i + 1}.", f"layers.{i}."
        state[f"{to}self_attn.in_proj_weight"] = torch.cat([own[f"{a}inner.{x}.weight"] for x in "qkv"])
        state[f"{to}self_attn.in_proj_bias"] = torch.zeros(48)
        for kind in ("weight", "bias"):
            state[f"{to}self_attn.out_proj.{kind}"] = own[f"{a}inner.out.{kind}"]
            state[f"{to}norm1.{kind}"], state[f"{to}norm2.{kind}"] = own[f"{a}norm.{kind}"], own[f"{f}norm.{kind}"]
            state[f"{to}linear1.{kind}"], state[f"{to}linear2.{kind}"] = own[f"{f}inner.0.{kind}"], own[f"{f}inner.2.{kind}"]
            state[f"norm.{kind}"] = own[f"norm.{kind}"]
    theirs.load_state_dict(state, strict=True)
    tokens = torch.tensor([[1, 2, 3, 0], [2, 1, 8, 0]])
    torch.testing.assert_close(ours(tokens), theirs(ours.tokens(tokens) + ours.positions.weight), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="4 positions"):
        ours(torch.zeros(1, 5, dtype=torch.long))


@pytest.mark.parametrize("field", ["width", "layers", "heads", "head_channels", "length", "vocabulary"])
def test_text_transformer_config_names_a_bad_size(field):
    with pytest.raises(ValueError, match=field):
        TextTransformerConfig.parse({field: 0})


# quantiser


def test_quantiser_finds_the_nearest_code_however_many_rows_fit(monkeypatch):
    quantizer = randomise(VectorQuantizer(37, 3))
    z = torch.randn(2, 3, 5, 4)
    brute = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 3), quantizer.codebook).argmin(1).view(2, 5, 4)
    assert torch.equal(quantizer.nearest(z), brute)
    monkeypatch.setattr("latentworks.nn.quantizer.DISTANCES", 1)
    assert torch.equal(quantizer.nearest(z), brute)
    assert DISTANCES * 4 <= 16 << 20


def test_quantiser_is_exact_under_autocast():
    quantizer = randomise(VectorQuantizer(300, 4))
    z = torch.randn(1, 4, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.nearest(z), quantizer.nearest(z.float()))
        inside = quantizer(z)
    outside = quantizer(z)
    torch.testing.assert_close(inside.loss, outside.loss)
    assert torch.equal(inside.codes, outside.codes)


def test_quantiser_initialises_uniformly_within_one_over_n():
    codebook = VectorQuantizer(50, 8).codebook
    assert codebook.abs().max() <= 1 / 50
    assert codebook.std().item() == pytest.approx(1 / 50 / 3**0.5, rel=0.15)


@pytest.mark.parametrize("legacy", [False, True])
def test_quantiser_gradients(legacy):
    """The image's loss reaches the encoder unchanged and not the codebook; beta sits on the right term."""
    quantizer = randomise(VectorQuantizer(11, 3, beta=0.25, legacy=legacy))
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    for through in (lambda z: quantizer(z).z, quantizer.straight_through):
        grad_z, grad_codes = torch.autograd.grad((through(z) * weight).sum(), (z, quantizer.codebook), allow_unused=True)
        torch.testing.assert_close(grad_z, weight)
        assert grad_codes is None
    out = quantizer(z)
    grad_z, grad_codes = torch.autograd.grad(out.loss, (z, quantizer.codebook))
    difference = (quantizer.lookup(out.codes) - z).detach()
    towards_code, towards_encoder = (1.0, 0.25) if legacy else (0.25, 1.0)
    torch.testing.assert_close(grad_z, -2 * towards_code * difference / z.numel())
    expected = torch.zeros_like(quantizer.codebook).index_add_(
        0, out.codes.flatten(), 2 * towards_encoder * difference.permute(0, 2, 3, 1).reshape(-1, 3) / z.numel()
    )
    torch.testing.assert_close(grad_codes, expected)
    assert out.loss.item() == pytest.approx(1.25 * difference.square().mean().item(), rel=1e-5)


def test_quantiser_counts_in_training_and_restarts_dead_codes():
    quantizer = VectorQuantizer(8, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.arange(8.0)[:, None].expand(8, 2) * 100)
    z = torch.zeros(1, 2, 3, 3) + torch.tensor([0.0, 100.0, 100.0])  # codes 0 and 1 are used
    quantizer.eval()(z)
    assert quantizer.counts.sum() == 0
    quantizer.train()(z)
    assert quantizer.counts.tolist() == [3, 6, 0, 0, 0, 0, 0, 0]
    fresh = torch.randn(2, 2, 4, 4)
    moved = quantizer.restart_dead(fresh, torch.Generator().manual_seed(0))
    assert moved.tolist() == [2, 3, 4, 5, 6, 7]
    assert quantizer.counts.sum() == 0
    candidates = fresh.permute(0, 2, 3, 1).reshape(-1, 2)
    assert all((candidates == code).all(1).any() for code in quantizer.codebook[2:])
    assert torch.equal(quantizer.codebook[:2], torch.tensor([[0.0, 0.0], [100.0, 100.0]]))
    assert len({tuple(code) for code in quantizer.codebook.tolist()}) == 8, "no two on one vector"
    again = VectorQuantizer(8, 2)
    with torch.no_grad():
        again.codebook.copy_(torch.arange(8.0)[:, None].expand(8, 2) * 100)
    again.counts[:2] = 1
    again.restart_dead(fresh, torch.Generator().manual_seed(0))
    assert torch.equal(again.codebook[2:], quantizer.codebook[2:])


def test_quantiser_restart_threshold_and_nothing_dead():
    quantizer = VectorQuantizer(4, 2)
    quantizer.counts.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    z = torch.randn(1, 2, 2, 2)
    assert quantizer.restart_dead(z, torch.Generator(), threshold=2.0).tolist() == [0, 1]
    quantizer.counts += 1
    before = quantizer.codebook.clone()
    assert quantizer.restart_dead(z, torch.Generator()).numel() == 0
    assert torch.equal(before, quantizer.codebook)


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)])
def test_quantiser_names_a_bad_size(sizes):
    with pytest.raises(ValueError, match="codes="):
        VectorQuantizer(*sizes)


# discriminator


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_discriminator_gives_the_authors_logits(golden, kind):
    init = load_file(golden / "training" / f"first-stage-{kind}-gan.init.safetensors")
    record = load_file(golden / "training" / f"first-stage-{kind}-gan.safetensors")
    discriminator = Discriminator(DiscriminatorConfig(norm="batch"))
    prefix = "loss.discriminator."
    discriminator.load_state_dict({key.removeprefix(prefix): value for key, value in init.items() if key.startswith(prefix)}, strict=True)
    logits = discriminator(record["step0.image"]).mean()
    torch.testing.assert_close(logits, record["log.opt1.train/logits_real"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layers", "out"), [(1, 14), (2, 6), (3, 2)])
def test_discriminator_judges_patches(layers, out):
    discriminator = Discriminator(DiscriminatorConfig(channels=8, layers=layers, in_channels=1))
    assert discriminator(torch.randn(2, 1, 32, 32)).shape == (2, 1, out, out)
    assert discriminator(torch.randn(1, 1, 3 * 2**layers, 3 * 2**layers)).shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="fewer layers"):
        discriminator(torch.randn(1, 1, 3 * 2**layers - 1, 32))


def test_discriminator_initialisation_and_norm():
    discriminator = Discriminator(DiscriminatorConfig())
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert all(c.weight.std().item() == pytest.approx(0.02, rel=0.05) for c in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules())


@pytest.mark.parametrize("bad", [{"layers": 0}, {"channels": 0}, {"in_channels": 0}, {"norm": "layer"}])
def test_discriminator_config_names_a_bad_value(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DiscriminatorConfig.parse(bad)


def test_neighbours_bind_a_token_to_those_beside_it_alone():
    block = randomise(Neighbours(8, 2))
    x = torch.randn(1, 9, 8, requires_grad=True)
    out = block(x)
    (gradient,) = torch.autograd.grad(out[0, 4].sum(), x)
    assert out.shape == x.shape
    assert (gradient[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert TextTransformer(TextTransformerConfig(width=8, layers=1, neighbours=1)).neighbours.conv.kernel_size == (3,)
