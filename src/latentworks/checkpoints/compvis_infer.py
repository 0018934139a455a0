"""The authors' YAML of a file that came without one: what weights and buffers show is read from them, the rest is asked for by name."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentworks.checkpoints.clip import CLIP
from latentworks.checkpoints.compvis_config import SCHEDULES
from latentworks.checkpoints.compvis_keys import COND, FIRST_STAGE, UNET
from latentworks.diffusion.process import Process, ProcessConfig

__all__ = ["SETTINGS", "infer_first_stage", "infer_params", "with_settings"]

State = Mapping[str, Tensor]

SETTINGS = {
    "num_heads": "attention heads of the UNet",
    "num_head_channels": "channels of each attention head, instead of num_heads",
    "num_heads_upsample": "attention heads of the UNet's decoder, if they differ",
    "use_new_attention_order": "true or false: how queries, keys and values are arranged",
    "linear_start": "the first beta",
    "linear_end": "the last beta",
    "timesteps": "diffusion steps",
    "beta_schedule": "linear, sqrt_linear or cosine",
    "parameterization": "what the UNet predicts: eps, x0 or v",
    "scale_factor": "what latents are multiplied by, 1 for most VQ models",
    "cond_stage_key": "what the condition is: caption, coordinates_bbox, LR_image, masked_image, ...",
    "conditioning_key": "concat, crossattn, hybrid or adm",
    "image_size": "of the latent",
}
"""Values of the YAML that can be given by name."""
_OF_THE_UNET = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")

STABLE_DIFFUSION: dict[str, Any] = {
    "num_heads": 8, "use_new_attention_order": False, "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000,
    "beta_schedule": "linear", "parameterization": "eps", "scale_factor": 0.18215, "image_size": 64, "cond_stage_key": "txt",
}  # fmt: skip
"""v1-inference.yaml."""


def with_settings(params: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``model.params`` with some values set. Raises: ValueError for one that is not in `SETTINGS`."""
    if unknown := settings.keys() - SETTINGS.keys():
        raise ValueError(f"unknown setting {sorted(unknown)[0]!r}: allowed: {', '.join(SETTINGS)}")
    net = dict(params["unet_config"].get("params") or {})
    if "num_heads" in settings:
        net.pop("num_head_channels", None)
    net |= {key: value for key, value in settings.items() if key in _OF_THE_UNET}
    rest = {key: value for key, value in settings.items() if key not in _OF_THE_UNET}
    return {**params, **rest, "unet_config": {**params["unet_config"], "params": net}}


def infer_params(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``model.params`` of a latent diffusion model's weights. Raises: ValueError naming every setting that has to be given."""
    if f"{UNET}input_blocks.0.0.weight" not in state or f"{FIRST_STAGE}encoder.conv_in.weight" not in state:
        raise ValueError("config: these are no weights of a latent diffusion model with its first stage; if they are, give their YAML")
    net, first_stage = _unet(state), infer_first_stage(state, FIRST_STAGE)
    known = {**(STABLE_DIFFUSION if f"{CLIP}final_layer_norm.weight" in state else {}), **_schedule(state), **settings}
    if "scale_factor" in state:
        known["scale_factor"] = float(state["scale_factor"])
    known.setdefault("image_size", 256 >> (len(first_stage["params"]["ddconfig"]["ch_mult"]) - 1))  # all released ones are for 256 px
    inferred, asked = _conditioning(state, net, first_stage["params"]["embed_dim"], known)
    asked += ["parameterization", "scale_factor", "linear_start", "linear_end"]
    asked += ["use_new_attention_order"] if net["context_dim"] is None else []
    missing = [key for key in asked if key not in known]
    if not {"num_heads", "num_head_channels"} & known.keys():
        missing.insert(0, "num_heads")
    if missing:
        named = "; ".join(f"{key} ({SETTINGS[key]})" for key in missing)
        example = ", ".join(f'"{key}": ...' for key in missing)
        options = f"settings={{{example}}} (lw convert: --set {missing[0]}=...)"
        raise ValueError(f"config: without the YAML these are not known: {named}: give {options}")
    params = {**inferred, "channels": net["out_channels"], "unet_config": {"target": "UNetModel", "params": net}}
    return with_settings({**params, "first_stage_config": first_stage}, known)


def _schedule(state: State) -> dict[str, Any]:
    """The noise schedule, from the buffer that has its betas."""
    if "betas" not in state:
        return {}
    betas = state["betas"].double()
    ends = {"T": len(betas), "beta_start": float(f"{betas[0]:.6g}"), "beta_end": float(f"{betas[-1]:.6g}")}
    for theirs, ours in SCHEDULES.items():
        process = Process(ProcessConfig.parse({**({} if ours == "cosine" else ends), "T": len(betas), "schedule": ours}))
        abar = process.alpha[:-1] ** 2
        if torch.allclose(abar[1:] / abar[:-1], 1 - betas[1:], rtol=0, atol=1e-6):
            shown = {"linear_start": ends["beta_start"], "linear_end": ends["beta_end"]}
            return {"beta_schedule": theirs, "timesteps": len(betas), **shown}
    return {}


def _numbers(state: State, pattern: str) -> list[int]:
    """What the one group of a pattern matches in all keys, as sorted numbers."""
    return sorted({int(m[1]) for key in state if (m := re.match(pattern, key))})


def _unet(state: State) -> dict[str, Any]:
    """Their UNetModel's arguments. The encoder is walked through: a block without a residual block, or one that keeps its width and is
    followed by another level, is where the size is halved."""
    net = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    channels, in_channels = net["input_blocks.0.0.weight"].shape[:2]
    last = max(_numbers(net, r"input_blocks\.(\d+)\."))
    decoder = max(_numbers(net, r"output_blocks\.(\d+)\."))
    kinds = ["res" if f"input_blocks.{i}.0.in_layers.0.weight" in net else "down" for i in range(1, last + 1)]
    updown = any(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", key) for key in net)
    per_level = _blocks_per_level(net, kinds, decoder, updown)
    widths, attended, at = [], [], 1
    for level, blocks in enumerate(per_level):
        widths.append(net[f"input_blocks.{at + blocks - 1}.0.out_layers.0.weight"].shape[0])
        if f"input_blocks.{at}.1.norm.weight" in net:
            attended.append(2**level)
        at += blocks + 1
    context = next((net[key].shape[1] for key in net if key.endswith("attn2.to_k.weight")), None)
    emb, out = net["input_blocks.1.0.emb_layers.1.weight"].shape[0], net["input_blocks.1.0.out_layers.0.weight"].shape[0]
    return {
        "in_channels": in_channels,
        "out_channels": net["out.2.weight"].shape[0],
        "model_channels": channels,
        "num_res_blocks": per_level[0] if len(set(per_level)) == 1 else list(per_level),
        "channel_mult": [width // channels for width in widths],
        "attention_resolutions": attended[::-1],  # as the authors write them
        "use_spatial_transformer": context is not None,
        "context_dim": context,
        "transformer_depth": 1 + max(_numbers(net, r"middle_block\.1\.transformer_blocks\.(\d+)\."), default=0),
        "use_scale_shift_norm": emb == 2 * out,
        "resblock_updown": updown,
        "conv_resample": updown or any(key.endswith(".0.op.weight") for key in net),
        "num_classes": net["label_emb.weight"].shape[0] if "label_emb.weight" in net else None,
    }


def _blocks_per_level(net: State, kinds: list[str], decoder: int, updown: bool) -> list[int]:
    """Residual blocks of each level of the encoder. Where halving is a residual block too, all levels are taken to have as many."""
    if not updown:
        runs = "".join(kind[0] for kind in kinds).split("d")
        return [len(run) for run in runs]
    ups = sum(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", key) is not None for key in net)
    return [(len(kinds) - ups) // (ups + 1)] * (ups + 1)


def infer_first_stage(state: State, prefix: str) -> dict[str, Any]:
    """``first_stage_config`` of the weights under ``prefix``; their nominal resolution decides nothing else, 256 is what all say."""
    net = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    levels = _numbers(net, r"encoder\.down\.(\d+)\.")
    channels, in_channels = net["encoder.conv_in.weight"].shape[:2]
    kl = "quantize.embedding.weight" not in net
    attention = "vanilla" if "encoder.mid.attn_1.q.weight" in net else "linear" if "encoder.mid.attn_1.to_qkv.weight" in net else "none"
    params: dict[str, Any] = {
        "embed_dim": net["post_quant_conv.weight"].shape[1],
        "ddconfig": {
            "double_z": kl,
            "z_channels": net["post_quant_conv.weight"].shape[0],
            "resolution": 256,
            "in_channels": in_channels,
            "out_ch": net["decoder.conv_out.weight"].shape[0],
            "ch": channels,
            "ch_mult": [net[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // channels for i in levels],
            "num_res_blocks": 1 + max(_numbers(net, r"encoder\.down\.0\.block\.(\d+)\.")),
            "attn_resolutions": [256 // 2**i for i in _numbers(net, r"encoder\.down\.(\d+)\.attn\.")],
            "attn_type": attention,
        },
    }
    if kl:
        return {"target": "AutoencoderKL", "params": params}
    return {"target": "VQModelInterface", "params": {**params, "n_embed": net["quantize.embedding.weight"].shape[0]}}


def _conditioning(state: State, net: Mapping[str, Any], latent: int, known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """conditioning_key and cond_stage_config, and which settings decide what they mean."""
    extra, cond = net["in_channels"] - latent, {key.removeprefix(COND): value for key, value in state.items() if key.startswith(COND)}
    key = "adm" if net["num_classes"] else "concat" if net["context_dim"] is None else "hybrid" if extra else "crossattn"
    if key == "concat" and not extra:
        return {"cond_stage_config": "__is_unconditional__"}, []
    stage: Any = {"target": "torch.nn.Identity"}
    asked: list[str] = []
    if "embedding.weight" in cond:
        rows, width = cond["embedding.weight"].shape
        stage = {"target": "ClassEmbedder", "params": {"n_classes": rows, "embed_dim": width}}
    elif "transformer.token_emb.weight" in cond:
        rows, width = cond["transformer.token_emb.weight"].shape
        layers = 1 + max(_numbers(cond, r"transformer\.attn_layers\.layers\.(\d+)\."))
        length = cond["transformer.pos_emb.emb.weight"].shape[0]
        stage = {"target": "BERTEmbedder", "params": {"n_embed": width, "n_layer": layers // 2, "vocab_size": rows, "max_seq_len": length}}
        asked = ["cond_stage_key"]
    elif any(name.startswith("transformer.text_model.") for name in cond):
        stage = {"target": "FrozenCLIPEmbedder"}
    elif "channel_mapper.weight" in cond:
        out, classes = cond["channel_mapper.weight"].shape[:2]
        stages = max(_numbers(state, re.escape(FIRST_STAGE) + r"encoder\.down\.(\d+)\."))  # a map becomes as small as the latent
        stage = {"target": "SpatialRescaler", "params": {"n_stages": stages, "in_channels": classes, "out_channels": out}}
    elif key == "concat":
        asked = [] if extra == latent + 1 and cond else ["cond_stage_key"]
        stage = "__is_first_stage__" if extra == latent + 1 and (cond or known.get("cond_stage_key") == "masked_image") else stage
    return {"conditioning_key": key, "cond_stage_config": stage}, asked
