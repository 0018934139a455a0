"""Reads the authors' original files: a Lightning ``.ckpt`` and its YAML become a `LatentDiffusion` or a first stage of ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from latentworks.checkpoints.safe_pickle import load_pickle
from latentworks.conditioners import Conditioner, LabelConditioner, LabelConfig, TextConditioner, TextConfig
from latentworks.config import read_mapping
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, KLAutoencoder, KLConfig, VQAutoencoder, VQConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet, UNetConfig

__all__ = ["load_compvis", "load_compvis_first_stage", "rename"]

Settings = str | Path | Mapping[str, Any]
"""The authors' YAML: its file, or what it holds."""

Replacement = str | Callable[[re.Match[str]], str]

_RULES: tuple[tuple[str, Replacement], ...] = (
    # first stage
    (r"^first_stage_model\.", "first_stage."),
    (r"(first_stage\.(?:en|de)coder)\.(?:down|up)\.(\d+)\.block\.", r"\1.levels.\2.resnets."),
    (r"(first_stage\.(?:en|de)coder)\.(?:down|up)\.(\d+)\.attn\.", r"\1.levels.\2.attentions."),
    (r"(first_stage\.(?:en|de)coder)\.(?:down|up)\.(\d+)\.(?:down|up)sample\.", r"\1.levels.\2.resample."),
    (r"\.mid\.block_", ".mid.resnet"),
    (r"\.mid\.attn_1\.", ".mid.attention."),
    (r"\.nin_shortcut\.", ".skip."),
    (r"\.quantize\.embedding\.weight$", ".quantizer.codebook"),
    # UNet: places
    (r"^model\.diffusion_model\.", "unet."),
    (r"^unet\.input_blocks\.0\.0\.", "unet.conv_in."),
    (r"^unet\.input_blocks\.(\d+)\.", lambda m: f"unet.encoder.{int(m[1]) - 1}."),
    (r"^unet\.output_blocks\.", "unet.decoder."),
    (r"^unet\.middle_block\.([012])\.", lambda m: f"unet.middle.{('0.resnet', '0.attention', '1.resnet')[int(m[1])]}."),
    (r"^(unet\.encoder\.\d+)\.0\.op\.", r"\1.resample.conv."),
    (r"^(unet\.decoder\.\d+)\.[12]\.(conv\.|in_layers|out_layers|emb_layers)", r"\1.resample.\2"),
    (r"^(unet\.(?:en|de)coder\.\d+)\.0\.", r"\1.resnet."),
    (r"^(unet\.(?:en|de)coder\.\d+)\.1\.", r"\1.attention."),
    (r"^unet\.out\.0\.", "unet.norm_out."),
    (r"^unet\.out\.2\.", "unet.conv_out."),
    # UNet: blocks
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".emb."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".skip."),
    (r"\.transformer_blocks\.", ".blocks."),
    (r"\.attn([12])\.", lambda m: (".self_attention.", ".cross_attention.")[int(m[1]) - 1]),
    (r"\.to_(q|k|v|qkv)\.weight$", r".\1.weight"),
    (r"\.to_out\.(?:0\.)?(weight|bias)$", r".out.\1"),
    (r"\.ff\.net\.0\.proj\.", ".feed_forward.proj_in."),
    (r"\.ff\.net\.2\.", ".feed_forward.proj_out."),
    # conditioners
    (r"^cond_stage_model\.", "conditioners.0."),
    (r"\.transformer\.token_emb\.", ".transformer.tokens."),
    (r"\.transformer\.pos_emb\.emb\.", ".transformer.positions."),
    (r"\.attn_layers\.layers\.(\d+)\.0\.", r".layers.\1.norm."),
    (r"\.attn_layers\.layers\.(\d+)\.1\.", r".layers.\1.inner."),
    (r"\.inner\.net\.0\.0\.", ".inner.0."),
    (r"\.inner\.net\.2\.", ".inner.2."),
)

_IGNORED = re.compile(
    r"(betas|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_)?(one_minus_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|lvlb_weights|logvar|scale_factor"
    r"|model_ema\..*|first_stage_model\.(loss\..*|colorize|model_ema\..*)|cond_stage_model\.transformer\.to_logits\..*)"
)
_OURS = re.compile(r"first_stage\.(mean|std|quantizer\.counts)")
"""What their files do not have: latent statistics and the count of codes."""

_ONE_HEAD = {(256, (1, 2, 4), 512), (192, (1, 2, 3, 5), 640), (128, (1, 2, 3, 4), 512)}
"""(channels, multipliers, context) of cin256, text2img256 and layout2img-openimages256. They were trained before CompVis/latent-diffusion
71ebe40, when a SpatialTransformer had one head whatever ``num_head_channels: 32`` says in their YAML."""


def rename(key: str) -> str:
    """Our name for one of the authors' keys, as in the ``state_dict`` of a `LatentDiffusion` file; unknown keys come back as they are."""
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    return key


def load_compvis(ckpt: str | Path, config: Settings, ema: bool = True, tokenizer: Tokenizer | None = None) -> LatentDiffusion:
    """A model from the authors' ``.ckpt`` (or ``.safetensors``) and YAML, in evaluation mode.

    ``ema``: take the averaged weights where the file has both (some files hold only the averaged ones, under the names of the raw ones).
    ``tokenizer``: for text models, whose files carry none (theirs is bert-base-uncased); without it only ``batch["tokens"]`` can be given.
    Raises: ValueError naming what cannot be read, what is not supported, and every key without a counterpart on either side.
    """
    params, state = _params(config), _state_dict(Path(ckpt))
    try:
        model = _build(params, tokenizer)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}: the YAML lacks it; give the authors' config.yaml of this checkpoint") from None
    _load(model, _averaged(state) if ema else state)
    if params.get("scale_by_std") and "scale_factor" not in state:
        raise ValueError(f"{ckpt} has no scale_factor, though its YAML says scale_by_std: the file is incomplete")
    scale = float(state.get("scale_factor", params.get("scale_factor", 1.0)))
    model.first_stage.set_statistics(torch.zeros(model.first_stage.channels), torch.tensor(1 / scale))
    return model.eval()


def load_compvis_first_stage(ckpt: str | Path, config: Settings) -> KLAutoencoder | VQAutoencoder:
    """A first stage from its own ``.ckpt`` and YAML, in evaluation mode, without latent statistics.

    Raises: ValueError as `load_compvis`.
    """
    try:
        first_stage = build_first_stage(_first_stage_config(_model(config), 3))
    except KeyError as error:
        raise ValueError(f"{error.args[0]}: the YAML lacks it; give the authors' config.yaml of this checkpoint") from None
    if not isinstance(first_stage, KLAutoencoder | VQAutoencoder):
        raise ValueError("model: the identity first stage has no checkpoint: use IdentityFirstStage")
    holder = nn.Module()
    holder.first_stage = first_stage
    _load(holder, {f"first_stage_model.{key}": value for key, value in _state_dict(Path(ckpt)).items()})
    return first_stage.eval()


def _build(params: Mapping[str, Any], tokenizer: Tokenizer | None) -> LatentDiffusion:
    conditioners = _conditioners(params, tokenizer)
    first_stage = build_first_stage(_first_stage_config(params["first_stage_config"], params.get("channels", 3)))
    unet = UNet(_unet_config(params["unet_config"]["params"]), first_stage.channels, LatentDiffusion.sum_gives(conditioners))
    return LatentDiffusion(first_stage, unet, Process(_process_config(params)), conditioners)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    renamed = {rename(key): (key, value) for key, value in state.items() if not _IGNORED.fullmatch(key)}
    own = model.state_dict()
    surplus = [key for name, (key, _) in renamed.items() if name not in own]
    missing = [name for name in own if name not in renamed and not _OURS.fullmatch(name)]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, (key, value) in renamed.items()
        if name in own and own[name].shape != value.shape
    ]
    for keys, complaint in ((surplus, "keys with no place in the model"), (missing, "weights the file lacks"), (shapes, "other shapes")):
        if keys:
            raise ValueError(f"checkpoint and YAML do not belong together: {len(keys)} {complaint}: {', '.join(keys)}")
    model.load_state_dict({name: value for name, (_, value) in renamed.items()} | {n: t for n, t in own.items() if n not in renamed})


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's weights replaced by their averages, whose names are the UNet's without dots."""
    if not any(key.startswith("model_ema.diffusion_model") for key in state):
        return dict(state)
    names = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in state if key.startswith("model.")}
    if missing := [key for key, name in names.items() if name not in state]:
        raise ValueError(f"the checkpoint averages only a part of the UNet, load it with ema=False: no average of {', '.join(missing)}")
    return {key: state[names.get(key, key)] for key in state}


def _state_dict(ckpt: Path) -> dict[str, Tensor]:
    if ckpt.suffix == ".safetensors":
        return load_file(ckpt)
    state = load_pickle(ckpt)
    while isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{ckpt} holds no state_dict of tensors: is it a model checkpoint?")
    return state


def _model(config: Settings) -> Mapping[str, Any]:
    values = config if isinstance(config, Mapping) else read_mapping(Path(config))
    model = values.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("params"), Mapping):
        raise ValueError("model: the YAML has no model with params; give the authors' config.yaml of this checkpoint")
    return model


def _params(config: Settings) -> Mapping[str, Any]:
    params: Mapping[str, Any] = _model(config)["params"]
    for key in ("unet_config", "first_stage_config"):
        if not isinstance(params.get(key), Mapping):
            raise ValueError(f"{key}: the YAML lacks it; a first stage's own file is read by load_compvis_first_stage")
    return params


def _unsupported(what: str) -> NoReturn:
    raise ValueError(f"{what} is not supported")


def _process_config(params: Mapping[str, Any]) -> ProcessConfig:
    schedules = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}
    schedule = params.get("beta_schedule", "linear")
    if schedule not in schedules:
        _unsupported(f"beta_schedule: {schedule}")
    return ProcessConfig.parse(
        {
            "schedule": schedules[schedule],
            "beta_start": params.get("linear_start", 1e-4),
            "beta_end": params.get("linear_end", 2e-2),
            "T": params.get("timesteps", 1000),
            "prediction": params.get("parameterization", "eps"),
        }
    )


def _first_stage_config(config: Mapping[str, Any], channels: int) -> KLConfig | VQConfig | IdentityConfig:
    name = str(config.get("target", "")).rpartition(".")[2]
    params = config.get("params") or {}
    if name == "IdentityFirstStage":
        return IdentityConfig(in_channels=channels)
    if name not in ("AutoencoderKL", "VQModel", "VQModelInterface"):
        _unsupported(f"first stage {name!r}")
    net = params["ddconfig"]
    multipliers, kind = tuple(net["ch_mult"]), net.get("attn_type", "vanilla")
    factors = [net["resolution"] // resolution for resolution in net["attn_resolutions"]]  # resolutions are nominal, of the training size
    if kind == "linear" and factors:
        _unsupported("attn_type: linear with attn_resolutions")
    if net.get("out_ch", net["in_channels"]) != net["in_channels"]:
        _unsupported(f"out_ch {net['out_ch']} other than in_channels {net['in_channels']}")
    values = {
        "in_channels": net["in_channels"],
        "channels": net["ch"],
        "multipliers": multipliers,
        "blocks": net["num_res_blocks"],
        "latent_channels": net["z_channels"],
        "embed_channels": params["embed_dim"],
        "attention": [f for f in factors if f in [2**i for i in range(len(multipliers))] and kind != "none"],
        "mid_attention": {"vanilla": "full", "linear": "linear", "none": "none"}[kind],
        "dropout": net.get("dropout", 0.0),
    }
    if name == "AutoencoderKL":
        return KLConfig.parse(values)
    return VQConfig.parse({**values, "codes": params["n_embed"], "legacy": True})


def _unet_config(params: Mapping[str, Any]) -> UNetConfig:
    for key in ("num_classes", "n_embed", "use_new_attention_order"):
        if params.get(key):
            _unsupported(f"unet_config: {key}")
    multipliers = tuple(params.get("channel_mult", (1, 2, 4, 8)))
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    if params.get("use_spatial_transformer") and (params["model_channels"], multipliers, params.get("context_dim")) in _ONE_HEAD:
        heads, head_channels = 1, -1
    reached = [2**i for i in range(len(multipliers))]
    return UNetConfig.parse(
        {
            "channels": params["model_channels"],
            "multipliers": multipliers,
            "blocks": params["num_res_blocks"],
            "attention": [factor for factor in params["attention_resolutions"] if factor in reached],
            "heads": heads if head_channels == -1 else None,
            "head_channels": None if head_channels == -1 else head_channels,
            "depth": params.get("transformer_depth", 1),
            "dropout": params.get("dropout", 0),
            "scale_shift": params.get("use_scale_shift_norm", False),
            "resblock_updown": params.get("resblock_updown", False),
            "conv_resample": params.get("conv_resample", True),
        }
    )


def _conditioners(params: Mapping[str, Any], tokenizer: Tokenizer | None) -> list[Conditioner]:
    config = params.get("cond_stage_config", "__is_unconditional__")
    if config == "__is_unconditional__":
        return []
    if isinstance(config, str):
        _unsupported(f"conditioner {config!r}")
    name, inner = str(config.get("target", "")).rpartition(".")[2], config.get("params") or {}
    boxes = str(params.get("cond_stage_key")).endswith(("_bbox", "_center_points"))
    if params.get("conditioning_key") != "crossattn" or name not in ("ClassEmbedder", "BERTEmbedder") or boxes:
        _unsupported(f"conditioner {name!r} on {params.get('cond_stage_key')!r} by {params.get('conditioning_key') or 'concat'!r}")
    if name == "ClassEmbedder":
        rows = inner.get("n_classes", 1000)
        null = rows == 1001  # cin256-v2: ImageNet's 1,000 classes and the null class of its guidance
        return [LabelConditioner(LabelConfig(classes=rows - null, width=inner["embed_dim"], null=null))]
    sizes = {"layers": inner["n_layer"], "vocabulary": inner.get("vocab_size", 30522), "length": inner.get("max_seq_len", 77)}
    return [TextConditioner(TextConfig(width=inner["n_embed"], **sizes), tokenizer)]
