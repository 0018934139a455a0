"""Options of the authors' classes that no reference model has: classes in the time embedding, hybrids, orders and counts of heads."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from latentworks.checkpoints.compvis import load_compvis
from latentworks.checkpoints.compvis_config import parse_params
from latentworks.checkpoints.compvis_infer import infer_params
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.checkpoints.compvis_save import save_compvis
from latentworks.conditioners import LabelConditioner, LowResConditioner, MaskedImageConditioner
from latentworks.types import Cond
from toys import diffusion_model

CLASSES = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"n_classes": 5, "embed_dim": 16}}
ANSWERS = {"num_heads": 2, "parameterization": "eps", "scale_factor": 0.5, "linear_start": 1e-3, "linear_end": 2e-2,
           "use_new_attention_order": False}  # fmt: skip


def params_of(net: dict[str, Any] | None = None, autoencoder: dict[str, Any] | None = None, **rest: Any) -> dict[str, Any]:
    unet = {"in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 1,
            "channel_mult": [1, 2], "num_heads": 2, **(net or {})}  # fmt: skip
    dd = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1],
          "num_res_blocks": 1, "attn_resolutions": [], **(autoencoder or {})}  # fmt: skip
    return {"image_size": 8, "channels": 4, "linear_start": 1e-3, "linear_end": 2e-2, "scale_factor": 0.5,
            "cond_stage_config": "__is_unconditional__", **rest, "unet_config": {"params": unet},
            "first_stage_config": {"target": "AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": dd}}}  # fmt: skip


def file_of(params: dict[str, Any], path) -> Any:
    """A checkpoint of random weights in the authors' names."""
    from latentworks.checkpoints.compvis import _build

    torch.manual_seed(0)
    model = _build(parse_params(params), {}, None)
    own = model.state_dict()
    torch.save({"state_dict": {theirs: torch.randn_like(own[ours]) * 0.1 for ours, theirs in authors_keys(model).items()}}, path)
    return path


OPTIONS = {
    "adm": ({"num_classes": 5}, {}, {"conditioning_key": "adm", "cond_stage_config": {"target": "torch.nn.Identity"}}),
    "hybrid": ({"in_channels": 7, "use_spatial_transformer": True, "context_dim": 16}, {},
               {"conditioning_key": "hybrid", "cond_stage_config": CLASSES}),
    "hybrid-masked": ({"in_channels": 9, "use_spatial_transformer": True, "context_dim": 16}, {},
                      {"conditioning_key": "hybrid", "cond_stage_config": CLASSES}),
    "scale-shift": ({"use_scale_shift_norm": True}, {}, {}),
    "updown": ({"resblock_updown": True, "num_res_blocks": 2}, {}, {}),
    "no-conv": ({"conv_resample": False, "num_res_blocks": 2}, {}, {}),
    "new-order": ({"use_new_attention_order": True, "num_heads": 4}, {}, {}),
    "decoder-heads": ({"num_heads_upsample": 8}, {}, {}),
    "head-channels": ({"num_head_channels": 8}, {}, {}),
    "depth": ({"use_spatial_transformer": True, "context_dim": 16, "transformer_depth": 2}, {},
              {"concat_mode": False, "cond_stage_config": CLASSES}),
    "linear-attention": ({}, {"attn_type": "linear", "attn_resolutions": [32]}, {}),
    "attention": ({}, {"attn_resolutions": [64, 32]}, {}),
    "cosine": ({}, {}, {"beta_schedule": "cosine", "timesteps": 100}),
    "x0": ({}, {}, {"parameterization": "x0"}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_in_out_and_in_again(tmp_path, name):
    net, autoencoder, rest = OPTIONS[name]
    params = params_of(net, autoencoder, **rest)
    model = load_compvis(file_of(params, tmp_path / "a.ckpt"), {"model": {"params": params}})
    save_compvis(model, tmp_path / "b.safetensors", 16)
    again = load_compvis(tmp_path / "b.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([5, 60])
    batch: Any = {"label": torch.tensor([1, 4]), "low_res": torch.randn(2, 3, 8, 8), "mask": torch.ones(2, 1, 16, 16),
                  "image": torch.zeros(2, 3, 16, 16)}  # fmt: skip
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, model.condition(batch)), again.predict(x, t, again.condition(batch)))
        assert torch.equal(model.first_stage.decode(x), again.first_stage.decode(x))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("hybrid", "cosine", "decoder-heads", "head-channels")])
def test_sizes_are_inferred(tmp_path, name):
    net, autoencoder, rest = OPTIONS[name]
    params = params_of(net, autoencoder, **rest)
    state = torch.load(file_of(params, tmp_path / "a.ckpt"))["state_dict"]
    order, heads = net.get("use_new_attention_order", False), net.get("num_heads", 2)
    answers = {**ANSWERS, "use_new_attention_order": order, "num_heads": heads, "parameterization": rest.get("parameterization", "eps")}
    inferred, want = parse_params(infer_params(state, answers)), parse_params(params)
    assert inferred._replace(size=0, notes=()) == want._replace(size=0, notes=())


def test_what_options_become():
    def parts(name: str) -> Any:
        return parse_params(params_of(*OPTIONS[name][:2], **OPTIONS[name][2]))

    assert parts("adm").conditioners[0].route == "vector"
    assert [c.kind for c in parts("hybrid").conditioners] == ["low_res", "label"]
    assert parts("hybrid-masked").conditioners[0].convention == "sd"
    assert parts("new-order").unet.attention_order == "qkv"
    assert parts("decoder-heads").unet.decoder_heads == 8
    assert parts("head-channels").unet.heads_of(64) == 8
    legacy = params_of({"num_heads_upsample": 8, "legacy": False})
    assert parse_params(legacy).unet.decoder_heads is None, "their code does not look at it then"
    assert parse_params(params_of(scale_by_std=True)).scale is None
    with pytest.raises(ValueError, match=r"num_heads .*use_new_attention_order"):
        infer_params({**_least()}, {})


def _least() -> dict[str, torch.Tensor]:
    from latentworks.checkpoints.compvis import _build

    model = _build(parse_params(params_of()), {}, None)
    own = model.state_dict()
    return {theirs: own[ours] for ours, theirs in authors_keys(model).items()}


def test_classes_are_added_to_the_time_embedding(tmp_path):
    params = params_of({"num_classes": 5}, conditioning_key="adm", cond_stage_config={"target": "torch.nn.Identity"})
    file = file_of(params, tmp_path / "a.ckpt")
    table = torch.load(file)["state_dict"]["model.diffusion_model.label_emb.weight"]
    model = load_compvis(file, {"model": {"params": params}})
    assert isinstance(model.conditioners[0], LabelConditioner)
    label = torch.tensor([3, 0])
    assert torch.equal(model.condition({"label": label}).vector, table[label])


def test_both_routes_of_a_hybrid(tmp_path):
    for channels, kind in ((7, LowResConditioner), (9, MaskedImageConditioner)):
        net = {"in_channels": channels, "use_spatial_transformer": True, "context_dim": 16}
        params = params_of(net, conditioning_key="hybrid", cond_stage_config=CLASSES)
        model = load_compvis(file_of(params, tmp_path / f"{channels}.ckpt"), {"model": {"params": params}})
        assert isinstance(model.conditioners[0], kind)
        low, label = torch.randn(1, 3, 8, 8), torch.tensor([2])
        if kind is LowResConditioner:
            cond = model.condition({"low_res": low, "label": label})
            assert torch.equal(cond.concat, low)
            assert torch.equal(cond.context, model.conditioners[1].embedding.weight[2].view(1, 1, -1))


def qkv_attention(x: torch.Tensor, block: Any, heads: int, new: bool) -> torch.Tensor:
    """The authors' QKVAttention and QKVAttentionLegacy, written down anew from their description."""
    b, c, h, w = x.shape
    flat = x.reshape(b, c, h * w)
    qkv = block.qkv(F.group_norm(flat, 32, block.norm.weight, block.norm.bias, 1e-5))
    if new:  # [q, k, v][head][channel]
        q, k, v = (part.reshape(b * heads, c // heads, -1) for part in qkv.chunk(3, dim=1))
    else:  # [head][q, k, v][channel]
        q, k, v = qkv.reshape(b * heads, 3 * c // heads, -1).split(c // heads, dim=1)
    weights = torch.einsum("bct,bcs->bts", q, k).div((c // heads) ** 0.5).softmax(dim=-1)
    out = torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, -1)
    return (flat + block.proj_out(out)).reshape(b, c, h, w)


@pytest.mark.parametrize("name", ["new-order", "decoder-heads", "scale-shift"])
def test_heads_and_their_order(tmp_path, name):
    net, _, rest = OPTIONS[name]
    params = params_of(net, **rest)
    model = load_compvis(file_of(params, tmp_path / "a.ckpt"), {"model": {"params": params}})
    encoder = net.get("num_heads", 2)
    for stages, heads in ((model.unet.encoder, encoder), (model.unet.decoder, net.get("num_heads_upsample", encoder))):
        blocks = [stage.attention for stage in stages if stage.attention is not None]
        assert blocks
        for block in blocks:
            x = torch.randn(2, block.qkv.in_channels, 4, 4)
            with torch.no_grad():
                torch.testing.assert_close(block(x), qkv_attention(x, block, heads, name == "new-order"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "rest", "message"),
    [
        ({"num_classes": 5}, {}, "num_classes: 5 do not fit: adm needs both"),
        ({}, {"conditioning_key": "adm"}, "adm needs both"),
        ({"context_dim": 16}, {}, "context_dim: 16 do not fit"),
        ({"in_channels": 6}, {}, "in_channels: 6 do not fit latents of 4 channels"),
        ({"in_channels": 6}, {"cond_stage_config": "__is_first_stage__"}, "conditioner .* is not supported"),
        ({"n_embed": 4}, {}, "n_embed: 4 is not supported"),
        ({"dims": 3}, {}, "dims: 3 is not supported"),
        ({"context_dim": 16}, {"conditioning_key": "crossattn", "cond_stage_config": {"target": "x.Other"}}, "'Other' .*is not supported"),
        ({}, {"conditioning_key": "film", "cond_stage_config": CLASSES}, "conditioning_key: film is not supported"),
        ({"num_heads": -1}, {}, "num_heads or num_head_channels"),
    ],
)
def test_what_does_not_fit_or_is_not_supported_is_named(net, rest, message):
    with pytest.raises(ValueError, match=message):
        parse_params(params_of(net, **rest))


def test_conditions_of_a_loaded_model_can_be_given_directly(tmp_path):
    params = params_of({"use_spatial_transformer": True, "context_dim": 16}, concat_mode=False, cond_stage_config=CLASSES)
    model = load_compvis(file_of(params, tmp_path / "a.ckpt"), {"model": {"params": params}})
    with torch.no_grad():
        assert model.predict(torch.randn(1, 4, 8, 8), torch.tensor([1]), Cond(context=torch.randn(1, 3, 16))).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("kind: layout, classes: 2, painted: 2", "boxes that are painted"),
        ("kind: text, neighbours: 1", "tokens that are mixed with their neighbours"),
        ("kind: text, vector: 64", "a vector of the prompt beside its tokens"),
    ],
)
def test_what_the_authors_do_not_have_has_no_place_in_their_files(tmp_path, more, what):
    config = f"{{{more}, width: 16, layers: 1, heads: 2, head_channels: 8, length: 8, vocabulary: 300}}"
    model, _ = diffusion_model(f"conditioners=[{config}]", name="unconditional-64")
    with pytest.raises(ValueError, match=f"no place for {what}"):
        save_compvis(model, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("way", ["scale: 2", "fold: 2"])
def test_small_images_of_another_size_than_the_latents_have_no_place_in_their_files(tmp_path, way):
    model, _ = diffusion_model(f"conditioners=[{{kind: low_res, {way}}}]", name="unconditional-64")
    with pytest.raises(ValueError, match="no place for a small image that is not of the latent's size"):
        save_compvis(model, tmp_path / "a.safetensors")
