"""The authors' YAML as configs of ours: what their options mean here, which of their files it describes, and what is not supported."""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from latentworks.checkpoints.compvis_released import released_with_one_head
from latentworks.conditioners import (
    ConditionerConfig,
    FeaturesConfig,
    FrozenTextConfig,
    LabelConfig,
    LayoutConfig,
    LowResConfig,
    MaskedImageConfig,
    SegmentationConfig,
    TextConfig,
)
from latentworks.diffusion.process import ProcessConfig
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig
from latentworks.unet import UNetConfig

__all__ = ["SCHEDULES", "Parts", "first_stage_config", "parse_params"]

SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}
"""Their names of schedules -> ours."""


class Parts(NamedTuple):
    """A YAML in our words. ``scale``: their scale_factor, None where the file has to have it; ``size``: pixels a side; ``notes``: what a
    user should know."""

    first_stage: KLConfig | VQConfig | IdentityConfig
    conditioners: tuple[ConditionerConfig, ...]
    unet: UNetConfig
    process: ProcessConfig
    scale: float | None
    size: int
    notes: tuple[str, ...]


def parse_params(params: Mapping[str, Any], heads_given: bool = False) -> Parts:
    """``model.params`` of a latent diffusion model's YAML. ``heads_given``: a user insists on the number of heads.

    Raises: ValueError naming what is missing or not supported.
    """
    try:
        return _parse(params, heads_given)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}: the YAML lacks it; give the authors' config.yaml of this checkpoint") from None


def _parse(params: Mapping[str, Any], heads_given: bool) -> Parts:
    net = params["unet_config"]["params"]
    first_stage = first_stage_config(params["first_stage_config"], params.get("channels", 3))
    latent = first_stage.in_channels if isinstance(first_stage, IdentityConfig) else first_stage.embedding
    factor = 1 if isinstance(first_stage, IdentityConfig) else first_stage.factor
    conditioners = tuple(_conditioners(params, net, latent))
    unet, notes = _unet_config(net), []
    name = released_with_one_head(unet, first_stage, conditioners)
    if name and not heads_given and unet.heads != 1:
        said = f"num_heads: {unet.heads}" if unet.heads else f"num_head_channels: {unet.head_channels}"
        notes.append(
            f"{name} was trained with one attention head, though its YAML says {said}: it is loaded with one head"
            " (to have it otherwise, give the setting num_heads or num_head_channels)"
        )
        unet = unet.replace(heads=1, head_channels=None)
    scale = None if params.get("scale_by_std") else float(params.get("scale_factor", 1.0))
    size = params.get("image_size", net.get("image_size", 32))
    pixels = (max(size) if isinstance(size, list | tuple) else int(size)) * factor
    return Parts(first_stage, conditioners, unet, _process_config(params), scale, pixels, tuple(notes))


def _unsupported(what: str) -> NoReturn:
    raise ValueError(f"{what} is not supported")


def _target(config: Any) -> str:
    """The class a config names, without its module."""
    return str(config.get("target", "") if isinstance(config, Mapping) else config).rpartition(".")[2]


def _process_config(params: Mapping[str, Any]) -> ProcessConfig:
    schedule = params.get("beta_schedule", "linear")
    if schedule not in SCHEDULES:
        _unsupported(f"beta_schedule: {schedule}")
    return ProcessConfig.parse(
        {
            "schedule": SCHEDULES[schedule],
            "beta_start": params.get("linear_start", 1e-4),
            "beta_end": params.get("linear_end", 2e-2),
            "T": params.get("timesteps", 1000),
            "prediction": params.get("parameterization", "eps"),
        }
    )


def first_stage_config(config: Mapping[str, Any], channels: int) -> KLConfig | VQConfig | IdentityConfig:
    """A first stage's part of a YAML. ``channels`` of an image, for the identity. Raises: ValueError, or KeyError for a missing key."""
    name, params = _target(config), config.get("params") or {}
    if name == "IdentityFirstStage":
        return IdentityConfig(in_channels=channels)
    if name not in ("AutoencoderKL", "VQModel", "VQModelInterface"):
        _unsupported(f"first stage {name!r}")
    net = params["ddconfig"]
    multipliers, kind = tuple(net["ch_mult"]), "linear" if net.get("use_linear_attn") else net.get("attn_type", "vanilla")
    factors = [net["resolution"] // resolution for resolution in net["attn_resolutions"]]  # resolutions are nominal, of the training size
    if net.get("out_ch", net["in_channels"]) != net["in_channels"]:
        _unsupported(f"out_ch {net['out_ch']} other than in_channels {net['in_channels']}")
    for key, value in {"tanh_out": False, "resamp_with_conv": True, "double_z": name == "AutoencoderKL"}.items():
        if net.get(key, value) != value:
            _unsupported(f"{name} with {key}: {net[key]}")
    if params.get("remap") is not None:
        _unsupported(f"remap: {params['remap']}")
    if kind not in ("vanilla", "linear", "none"):
        _unsupported(f"attn_type: {kind}")
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
        "groups": net.get("groups", 32),  # not theirs: what compvis_yaml writes for a model they have no class for
    }
    if name == "AutoencoderKL":
        return KLConfig.parse(values)
    return VQConfig.parse({**values, "codes": params["n_embed"], "legacy": params.get("legacy", True)})


def _unet_config(net: Mapping[str, Any]) -> UNetConfig:
    for key, value in {"n_embed": None, "dims": 2}.items():
        if net.get(key) not in (None, value):
            _unsupported(f"unet_config: {key}: {net[key]}")
    multipliers = tuple(net.get("channel_mult", (1, 2, 4, 8)))
    heads, head_channels = net.get("num_heads", -1), net.get("num_head_channels", -1)
    decoder_heads = net.get("num_heads_upsample", -1)
    if head_channels != -1 or net.get("use_spatial_transformer") or decoder_heads == heads or net.get("legacy") is False:
        decoder_heads = -1  # where their code does not look at it
    if heads == -1 and head_channels == -1:
        raise ValueError("unet_config: num_heads or num_head_channels: one of them has to be given")
    reached = [2**i for i in range(len(multipliers))]
    blocks = net["num_res_blocks"]
    return UNetConfig.parse(
        {
            "channels": net["model_channels"],
            "multipliers": multipliers,
            "blocks": tuple(blocks) if isinstance(blocks, list | tuple) else blocks,
            "attention": [factor for factor in net["attention_resolutions"] if factor in reached],
            "heads": heads if head_channels == -1 else None,
            "head_channels": None if head_channels == -1 else head_channels,
            "decoder_heads": None if decoder_heads == -1 else decoder_heads,
            "depth": net.get("transformer_depth", 1),
            "attention_order": "qkv" if net.get("use_new_attention_order") else "head",
            "dropout": net.get("dropout", 0),
            "scale_shift": net.get("use_scale_shift_norm", False),
            "resblock_updown": net.get("resblock_updown", False),
            "conv_resample": net.get("conv_resample", True),
            "groups": net.get("groups", 32),
        }
    )


def _conditioners(params: Mapping[str, Any], net: Mapping[str, Any], latent: int) -> list[ConditionerConfig]:
    """Their conditioning_key and cond_stage_config: what is concatenated, then what is attended to or added to the time embedding."""
    stage = params.get("cond_stage_config", "__is_unconditional__")
    key = params.get("conditioning_key") or ("concat" if params.get("concat_mode", True) else "crossattn")
    key = None if stage == "__is_unconditional__" and key not in ("adm", "hybrid") else key
    if key not in (None, "concat", "crossattn", "hybrid", "adm"):
        _unsupported(f"conditioning_key: {key}")
    if (key == "adm") != (net.get("num_classes") is not None):
        raise ValueError(f"conditioning_key: {key} and unet_config.num_classes: {net.get('num_classes')} do not fit: adm needs both")
    if (net.get("context_dim") is not None) != (key in ("crossattn", "hybrid")):
        raise ValueError(f"conditioning_key: {key} and unet_config.context_dim: {net.get('context_dim')} do not fit")
    extra = net.get("in_channels", latent) - latent
    if (extra > 0) != (key in ("concat", "hybrid")):
        given = net.get("in_channels")
        raise ValueError(f"conditioning_key: {key} and unet_config.in_channels: {given} do not fit latents of {latent} channels")
    found: list[ConditionerConfig] = []
    if key == "hybrid":
        sd = MaskedImageConfig(channels=latent, convention="sd")
        found.append(sd if extra == latent + 1 else LowResConfig(channels=extra))
    if key == "concat":
        found.append(_joined(stage, str(params.get("cond_stage_key")), extra, latent))
    if key in ("crossattn", "hybrid"):
        found.append(_context(stage, str(params.get("cond_stage_key")), net))
    if key == "adm":
        found.append(LabelConfig(classes=net["num_classes"], width=4 * net["model_channels"], route="vector", null=False))
    return found


def _joined(stage: Any, field: str, extra: int, latent: int) -> ConditionerConfig:
    """What is concatenated to a latent, ``extra`` channels of it."""
    name, inner = _target(stage), (stage.get("params") or {}) if isinstance(stage, Mapping) else {}
    if stage == "__is_first_stage__" and extra == latent + 1:
        return MaskedImageConfig(channels=latent, convention="ldm")
    if name == "Identity":
        return LowResConfig(channels=extra)
    if name == "SpatialRescaler" and inner.get("out_channels") == extra and inner.get("multiplier", 0.5) == 0.5 and not inner.get("bias"):
        return SegmentationConfig(classes=inner["in_channels"], channels=extra, stages=inner.get("n_stages", 1))
    return _unsupported(f"conditioner {name!r} of {extra} channels on {field!r} by 'concat'")


def _context(stage: Any, field: str, net: Mapping[str, Any]) -> ConditionerConfig:
    """What is attended to, ``net["context_dim"]`` wide."""
    name, inner = _target(stage), (stage.get("params") or {}) if isinstance(stage, Mapping) else {}
    width = net["context_dim"][0] if isinstance(net["context_dim"], list | tuple) else net["context_dim"]
    match name:
        case "ClassEmbedder":
            rows = inner.get("n_classes", 1000)
            null = inner.get("null", rows == 1001)  # cin256-v2: ImageNet's 1,000 classes and the null class of its guidance
            return LabelConfig(classes=rows - null, width=inner["embed_dim"], null=null)
        case "BERTEmbedder" | "TransformerEmbedder":
            sizes = {"width": inner["n_embed"], "layers": inner["n_layer"], "vocabulary": inner.get("vocab_size", 30522)}
            sizes |= {"length": inner.get("max_seq_len", 77), "heads": inner.get("heads", 8), "head_channels": inner.get("dim_head", 64)}
            if field.endswith(("_bbox", "_center_points")):  # how many classes share the vocabulary with places, no file says
                return LayoutConfig.parse({**sizes, "classes": inner.get("classes", sizes["vocabulary"] - 1)})
            return TextConfig.parse(sizes)
        case "FrozenCLIPEmbedder":
            encoder = inner.get("version", "openai/clip-vit-large-patch14")
            return FrozenTextConfig(encoder=encoder, length=inner.get("max_length", 77), mask=False)
        case "FrozenCLIPTextEmbedder" | "Identity" | "__is_unconditional__":  # embeddings that are computed elsewhere
            return FeaturesConfig(width=width)
    return _unsupported(f"conditioner {name!r} on {field!r} by 'crossattn'")
