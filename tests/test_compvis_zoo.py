"""Every model of the authors' zoo by its YAML: names, shapes and counts are those of their own classes, in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latentworks.checkpoints.compvis import read_compvis
from latentworks.checkpoints.compvis_config import parse_params
from latentworks.checkpoints.compvis_keys import authors_keys
from latentworks.checkpoints.compvis_yaml import to_yaml
from latentworks.checkpoints.imported import recipe_of
from latentworks.checkpoints.tensors import without_weights
from latentworks.conditioners import FeaturesConditioner, LowResConditioner, MaskedImageConditioner, SegmentationConditioner
from latentworks.recipe import build_model
from latentworks.types import Cond


def first_stage(kind: str, z: int, mult: list[int], attn: list[int] | None = None, codes: int = 0, attn_type: str = "vanilla") -> Any:
    net = {"double_z": kind == "kl", "z_channels": z, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": mult,
           "num_res_blocks": 2, "attn_resolutions": attn or [], "dropout": 0.0, "attn_type": attn_type}  # fmt: skip
    params = {"embed_dim": z, "ddconfig": net, "lossconfig": {"target": "torch.nn.Identity"}}
    if kind == "kl":
        return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}
    return {"target": "ldm.models.autoencoder.VQModelInterface", "params": params | {"n_embed": codes}}


FIRST_STAGES = {
    "kl-f4": (first_stage("kl", 3, [1, 2, 4]), 55.31),
    "kl-f8": (first_stage("kl", 4, [1, 2, 4, 4]), 83.65),
    "kl-f16": (first_stage("kl", 16, [1, 1, 2, 2, 4], [16]), 69.61),
    "kl-f32": (first_stage("kl", 64, [1, 1, 2, 2, 4, 4], [16, 8]), 103.88),
    "vq-f4": (first_stage("vq", 3, [1, 2, 4], codes=8192), 55.32),
    "vq-f4-noattn": (first_stage("vq", 3, [1, 2, 4], codes=8192, attn_type="none"), 53.22),
    "vq-f8": (first_stage("vq", 4, [1, 2, 2, 4], [32], codes=16384), 67.72),
    "vq-f8-n256": (first_stage("vq", 4, [1, 2, 2, 4], [32], codes=256), 67.65),
    "vq-f16": (first_stage("vq", 8, [1, 1, 2, 2, 4], [16], codes=16384), 69.59),
}
CLASSES = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"n_classes": 1000, "embed_dim": 512, "key": "class_label"}}
BOXES = {"n_embed": 512, "n_layer": 16, "vocab_size": 8192, "max_seq_len": 92, "use_tokenizer": False}
IDENTITY = {"target": "torch.nn.Identity"}


def bert(**params: Any) -> Any:
    return {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": params}


def unet(channels: int, mult: list[int], attn: list[int], z: int, **options: Any) -> Any:
    return {"image_size": 32, "in_channels": z, "out_channels": z, "model_channels": channels, "attention_resolutions": attn,
            "num_res_blocks": 2, "channel_mult": mult, **options}  # fmt: skip


def context(width: int, depth: int = 1, **heads: int) -> dict[str, Any]:
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": width, **(heads or {"num_head_channels": 32})}


CELEBA = unet(224, [1, 2, 3, 4], [8, 4, 2], 3, num_head_channels=32)
CHURCHES = unet(192, [1, 2, 2, 4, 4], [1, 2, 4, 8], 4, num_heads=8, use_scale_shift_norm=True, resblock_updown=True)
SEMANTIC = unet(128, [1, 4, 8], [32, 16, 8], 3, num_heads=8) | {"in_channels": 6}
MAP = {"target": "ldm.modules.encoders.modules.SpatialRescaler", "params": {"n_stages": 2, "in_channels": 182, "out_channels": 3}}
CLIP = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
UNCOND = {"cond_stage_config": "__is_unconditional__"}

# name of the keys file -> first stage, unet, the rest, millions of the UNet, the keys file of the conditioner
ZOO: dict[str, tuple[str, Any, dict[str, Any], float]] = {
    "celeba256": ("vq-f4", CELEBA, UNCOND, 274.06),
    "celebahq-ldm-vq-4": ("vq-f4", CELEBA, UNCOND, 274.06),
    "ffhq256": ("vq-f4", CELEBA, UNCOND, 274.06),
    "ffhq-ldm-vq-4": ("vq-f4", CELEBA, UNCOND, 274.06),
    "lsun_beds256": ("vq-f4", CELEBA, UNCOND, 274.06),
    "lsun_bedrooms-ldm-vq-4": ("vq-f4", CELEBA, UNCOND, 274.06),
    "lsun_churches256": ("kl-f8", CHURCHES, UNCOND | {"scale_by_std": True}, 294.97),
    "lsun_churches-ldm-kl-8": ("kl-f8", CHURCHES, UNCOND | {"scale_by_std": True}, 294.97),
    "cin256": ("vq-f8", unet(256, [1, 2, 4], [4, 2, 1], 4, **context(512)),
               {"conditioning_key": "crossattn", "cond_stage_config": CLASSES}, 394.98),
    "cin-ldm-vq-f8": ("vq-f8", unet(256, [1, 2, 4], [4, 2, 1], 4, **context(512)),
                      {"conditioning_key": "crossattn", "cond_stage_config": CLASSES}, 394.98),
    "cin256-v2": ("vq-f4", unet(192, [1, 2, 3, 5], [8, 4, 2], 3, **context(512, num_heads=1)),
                  {"conditioning_key": "crossattn",
                   "cond_stage_config": {**CLASSES, "params": {"n_classes": 1001, "embed_dim": 512, "key": "class_label"}}}, 400.92),
    "text2img256": ("vq-f4", unet(192, [1, 2, 3, 5], [8, 4, 2], 3, **context(640)),
                    {"conditioning_key": "crossattn", "cond_stage_key": "caption",
                     "cond_stage_config": bert(n_embed=640, n_layer=32)}, 403.62),
    "txt2img-1p4B-eval": ("kl-f8", unet(320, [1, 2, 4, 4], [4, 2, 1], 4, **context(1280, num_heads=8), legacy=False),
                          {"conditioning_key": "crossattn", "cond_stage_key": "caption", "scale_factor": 0.18215, "linear_start": 0.00085,
                           "linear_end": 0.012, "cond_stage_config": bert(n_embed=1280, n_layer=32)}, 872.30),
    "layout2img-openimages256": ("vq-f4", unet(128, [1, 2, 3, 4], [8, 4, 2], 3, **context(512, 3)),
                                 {"conditioning_key": "crossattn", "cond_stage_key": "coordinates_bbox",
                                  "cond_stage_config": bert(**BOXES)}, 246.28),
    "bsr_sr": ("vq-f4", unet(160, [1, 2, 2, 4], [16, 8], 3, num_head_channels=32) | {"in_channels": 6},
               {"concat_mode": True, "cond_stage_key": "LR_image", "cond_stage_config": IDENTITY}, 113.62),
    "inpainting_big": ("vq-f4-noattn", unet(256, [1, 2, 3, 4], [8, 4, 2], 3, num_heads=8, resblock_updown=True) | {"in_channels": 7},
                       {"concat_mode": True, "cond_stage_key": "masked_image", "cond_stage_config": "__is_first_stage__"}, 387.25),
    "semantic_synthesis256": ("vq-f4", SEMANTIC, {"concat_mode": True, "cond_stage_key": "segmentation", "cond_stage_config": MAP}, 215.23),
    "semantic_synthesis512": ("vq-f4", SEMANTIC, {"concat_mode": True, "cond_stage_key": "segmentation", "cond_stage_config": MAP}, 215.23),
    "768x768": ("kl-f16", unet(448, [1, 2, 3, 4], [4, 2, 1], 16, **context(768)),
                {"conditioning_key": "crossattn", "cond_stage_key": "nix", "scale_factor": 0.22765929,
                 "cond_stage_config": IDENTITY}, 1335.48),
    "v1-inference": ("kl-f8", unet(320, [1, 2, 4, 4], [4, 2, 1], 4, **context(768, num_heads=8), legacy=False),
                     {"conditioning_key": "crossattn", "cond_stage_key": "txt", "scale_factor": 0.18215,
                      "cond_stage_config": CLIP}, 859.52),
}  # fmt: skip
COUNTED = {"text2img256": 186.15, "txt2img-1p4B-eval": 581.99, "layout2img-openimages256": 58.86}
TO_LOGITS = "cond_stage_model.transformer.to_logits."


def params_of(name: str) -> dict[str, Any]:
    stage, net, rest, _ = ZOO[name]
    return {**rest, "unet_config": {"target": "UNetModel", "params": net}, "first_stage_config": FIRST_STAGES[stage][0],
            "channels": net["out_channels"]}  # fmt: skip


def build(name: str) -> Any:
    from latentworks.checkpoints.compvis import _build

    with without_weights():
        return _build(parse_params(params_of(name)), {}, None)


def listed(golden: Path, kind: str, name: str, prefix: str = "") -> dict[str, str]:
    file = golden.parent / "reference" / "keys" / f"keys_{kind}_{name}.txt"
    return {prefix + key: shape for key, shape in (line.split("\t") for line in file.read_text().splitlines())} if file.exists() else {}


def exported(model: Any) -> dict[str, str]:
    own = model.state_dict()
    keys = authors_keys(model)
    assert set(own) - set(keys) <= {"first_stage.mean", "first_stage.std", "first_stage.quantizer.counts"}
    return {theirs: str(tuple(own[ours].shape)) for ours, theirs in keys.items()}


def count(keys: dict[str, str]) -> float:
    return sum(torch.Size(eval(shape)).numel() for shape in keys.values()) / 1e6


@pytest.mark.parametrize("name", ZOO)
def test_names_shapes_and_counts_are_the_authors(golden, name):
    stage, _, _, millions = ZOO[name]
    ours = exported(build(name))
    first, net, cond = listed(golden, "fs", stage, "first_stage_model."), listed(golden, "unet", name), listed(golden, "cond", name)
    parts = [{k: v for k, v in ours.items() if k.startswith(start)} for start in ("first_stage_model.", "model.diffusion_model.")]
    assert parts == [first, net]
    assert (round(count(first), 2), round(count(net), 2)) == (FIRST_STAGES[stage][1], millions)
    rest = {key: shape for key, shape in ours.items() if key.startswith("cond_stage_model.")}
    if cond:  # of their text models an output layer is left out, which nothing uses
        assert rest == {key: shape for key, shape in cond.items() if not key.startswith(TO_LOGITS)}
        assert round(count(cond), 2) == COUNTED[name]
    elif name.startswith("cin"):
        assert rest == {"cond_stage_model.embedding.weight": str((1001 if name == "cin256-v2" else 1000, 512))}
    elif name == "v1-inference":
        assert len(rest) == 196
        assert all(key.startswith("cond_stage_model.transformer.text_model.") for key in rest)
    else:
        assert rest == ({"cond_stage_model.channel_mapper.weight": "(3, 182, 1, 1)"} if name.startswith("semantic") else {})


@pytest.mark.parametrize("name", ZOO)
def test_the_yaml_we_write_means_the_same(name):
    params = params_of(name)
    model = build(name)
    model.first_stage.set_statistics(torch.zeros(model.first_stage.channels), torch.tensor(1.0))
    written, notes = to_yaml(model, 256)
    assert notes == []
    parts, again = parse_params(params), parse_params(written["model"]["params"], heads_given=True)
    for field in ("first_stage", "conditioners", "process"):
        assert getattr(parts, field) == getattr(again, field) or field == "process", field
    assert parts.unet == again.unet
    recipe = recipe_of(model, name, 256)
    with torch.device("meta"):
        assert recipe.conditioners == parts.conditioners
        if name != "v1-inference":  # whose encoder is not in the recipe but beside it
            assert exported(build_model(recipe)) == exported(model)


def test_every_keys_file_is_compared_here(golden):
    names = {path.stem.removeprefix("keys_").partition("_")[2] for path in (golden.parent / "reference" / "keys").glob("keys_*.txt")}
    assert names == FIRST_STAGES.keys() | ZOO.keys()


ONE_HEAD = ("cin256", "cin-ldm-vq-f8", "text2img256", "layout2img-openimages256")


@pytest.mark.parametrize("name", ZOO)
def test_three_files_have_one_head_and_no_other(name):
    parts = parse_params(params_of(name))
    net = params_of(name)["unet_config"]["params"]
    assert bool(parts.notes) == (name in ONE_HEAD)
    if name in ONE_HEAD:
        assert "one attention head, though its YAML says num_head_channels: 32" in parts.notes[0]
        assert parts.unet.heads_of(net["model_channels"]) == 1
        assert parse_params(params_of(name), heads_given=True).unet.head_channels == 32
        narrow = params_of(name)
        narrow["unet_config"] = {"params": {**net, "num_res_blocks": 1}}
        assert not parse_params(narrow).notes
    else:
        want = net["model_channels"] // 32 if "num_head_channels" in net else net["num_heads"]
        assert parts.unet.heads_of(net["model_channels"]) == want


def test_conditioners_of_images(golden):
    kinds = {name: [type(c) for c in build(name).conditioners] for name in ("bsr_sr", "inpainting_big", "semantic_synthesis256", "768x768")}
    assert list(kinds.values()) == [[LowResConditioner], [MaskedImageConditioner], [SegmentationConditioner], [FeaturesConditioner]]


def test_a_network_without_its_retrieval_takes_any_number_of_embeddings(golden, tmp_path):
    params = params_of("768x768")
    params["unet_config"]["params"] = unet(32, [1, 2], [2], 4, **context(24, num_heads=2)) | {"num_res_blocks": 1}
    params["first_stage_config"] = first_stage("kl", 4, [1, 1])
    params["first_stage_config"]["params"]["ddconfig"]["ch"] = 32
    params["channels"] = 4
    from latentworks.checkpoints.compvis import _build

    model = _build(parse_params(params), {}, None)
    keys = authors_keys(model)
    state = {theirs: model.state_dict()[ours] for ours, theirs in keys.items()} | {"cond_stage_model.model.visual.proj": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    loaded = read_compvis(tmp_path / "a.ckpt", {"model": {"params": params}})
    assert "give text_features" in loaded.notes[0]
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 500])
    for tokens in (1, 11):
        features = torch.randn(2, tokens, 24)
        by_batch = loaded.model.predict(x, t, loaded.model.condition({"text_features": features}))
        torch.testing.assert_close(by_batch, loaded.model.predict(x, t, Cond(context=features)))
    dropped = loaded.model.condition({"text_features": features}, torch.tensor([True, False]))
    assert not dropped.context[0].any()
    assert torch.equal(dropped.context[1], features[1])
