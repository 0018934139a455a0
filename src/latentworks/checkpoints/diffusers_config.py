"""Our configs as diffusers' config.json and back: first stages, UNets and the diffusion process."""

from typing import Any, NamedTuple

from torch import nn

from latentworks.checkpoints.diffusers_settings import CLASSES, settings_of
from latentworks.config import nearest
from latentworks.diffusion.process import ProcessConfig, Spacing
from latentworks.first_stage import KLAutoencoder, KLConfig, VQAutoencoder, VQConfig
from latentworks.unet import UNet, UNetConfig

__all__ = ["UNetParts", "first_stage_config", "first_stage_settings", "process_config", "process_settings", "unet_config", "unet_settings"]

_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class UNetParts(NamedTuple):
    """A UNet of theirs: our config, the channels it denoises, the widths of what it is given, classes, and a projection's input width."""

    config: UNetConfig
    channels: int
    concat: int
    context: int
    classes: int | None
    projection: int | None


def first_stage_config(given: dict[str, Any]) -> KLConfig | VQConfig:
    """Ours of an AutoencoderKL or a VQModel. Raises: ValueError naming the setting that has no counterpart."""
    theirs = settings_of(given, ("AutoencoderKL", "VQModel"))
    if theirs["in_channels"] != theirs["out_channels"]:
        raise ValueError(f"out_channels: {theirs['out_channels']} must be in_channels, {theirs['in_channels']}, here")
    down = _attention(theirs["down_block_types"], {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True})
    up = _attention(theirs["up_block_types"], {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True})
    if down != up[::-1]:
        raise ValueError("up_block_types: a decoder with attention at other sizes than the encoder has no counterpart here")
    values = {
        "in_channels": theirs["in_channels"],
        **_widths(theirs),
        "blocks": theirs["layers_per_block"],
        "latent_channels": theirs["latent_channels"],
        "attention": [2**i for i, has in enumerate(down) if has],
        "mid_attention": "full" if theirs["mid_block_add_attention"] else "none",
        "groups": theirs["norm_num_groups"],
    }
    if theirs["_class_name"] == "AutoencoderKL":
        return KLConfig.parse(values)
    embedding = theirs["vq_embed_dim"]
    return VQConfig.parse({**values, "embed_channels": embedding, "codes": theirs["num_vq_embeddings"], "legacy": True})


def first_stage_settings(model: KLAutoencoder | VQAutoencoder, scaling_factor: float | None, size: int) -> dict[str, Any]:
    """Theirs. Raises: ValueError naming what diffusers has no counterpart of."""
    config = model.config
    if config.mid_attention == "linear":
        raise ValueError("mid_attention: diffusers has no first stage with linear attention")
    if isinstance(config, KLConfig) and config.embedding != config.latent_channels:
        widths = f"embed_channels {config.embedding} and latent_channels {config.latent_channels}"
        raise ValueError(f"{widths} differ, but an AutoencoderKL has one number for both")
    has = [2**i in config.attention for i in range(len(config.multipliers))]
    settings = {
        "_class_name": "AutoencoderKL" if isinstance(config, KLConfig) else "VQModel",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["AttnDownEncoderBlock2D" if one else "DownEncoderBlock2D" for one in has],
        "up_block_types": ["AttnUpDecoderBlock2D" if one else "UpDecoderBlock2D" for one in reversed(has)],
        "block_out_channels": [config.channels * m for m in config.multipliers],
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": _groups(model),
        "sample_size": size,
        "scaling_factor": scaling_factor,
        "mid_block_add_attention": config.mid_attention == "full",
    }
    if isinstance(config, VQConfig):
        settings |= {"vq_embed_dim": config.embedding, "num_vq_embeddings": config.codes}
    _check_widths(config.multipliers)
    return settings


def unet_config(given: dict[str, Any]) -> UNetParts:
    """Ours of a UNet2DModel or a UNet2DConditionModel. Raises: ValueError naming the setting that has no counterpart."""
    theirs = settings_of(given, ("UNet2DModel", "UNet2DConditionModel"))
    context = theirs["_class_name"] == "UNet2DConditionModel"
    cross = "CrossAttn" if context else "Attn"
    down = _attention(theirs["down_block_types"], {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, f"{cross}DownBlock2D": True})
    up = _attention(theirs["up_block_types"], {"UpBlock2D": False, "ResnetUpsampleBlock2D": False, f"{cross}UpBlock2D": True})
    if down != up[::-1] or len(down) != len(theirs["block_out_channels"]):
        raise ValueError("up_block_types: they must mirror down_block_types, and there must be as many as block_out_channels")
    concat = theirs["in_channels"] - theirs["out_channels"]
    if concat < 0:
        raise ValueError(f"out_channels: {theirs['out_channels']} are more than in_channels, {theirs['in_channels']}: no counterpart here")
    blocks = theirs["layers_per_block"]
    config = UNetConfig.parse(
        {
            **_widths(theirs),
            "blocks": tuple(blocks) if isinstance(blocks, list) else blocks,
            "attention": [2**i for i, has in enumerate(down) if has],
            **_heads(theirs, down),
            "depth": _one(theirs, "transformer_layers_per_block") if context else 1,
            "dropout": theirs["dropout"],
            "scale_shift": _choice(theirs, "resnet_time_scale_shift", {"default": False, "scale_shift": True}),
            "resblock_updown": _updown(theirs),
            "groups": theirs["norm_num_groups"],
        }
    )
    width = _one(theirs, "cross_attention_dim") if context else 0
    classes, projection = theirs["num_class_embeds"], theirs.get("encoder_hid_dim")
    if not context and theirs["attn_norm_num_groups"] not in (config.groups, config.groups if config.scale_shift else None):
        raise ValueError(f"attn_norm_num_groups: {theirs['attn_norm_num_groups']} must be norm_num_groups, {config.groups}, here")
    return UNetParts(config, theirs["out_channels"], concat, width, classes, projection)


def _updown(theirs: dict[str, Any]) -> bool:
    """Whether residual blocks change the size, which is said at two places for two kinds of blocks."""
    attention = {"AttnDownBlock2D": theirs.get("downsample_type"), "AttnUpBlock2D": theirs.get("upsample_type")}
    kinds = {"ResnetDownsampleBlock2D": "resnet", "ResnetUpsampleBlock2D": "resnet", **attention}
    used = {kinds.get(kind, "conv") for kind in [*theirs["down_block_types"][:-1], *theirs["up_block_types"][:-1]]}
    if len(used) > 1 or not used <= {"conv", "resnet"}:
        raise ValueError("downsample_type, upsample_type: all must be 'conv' or all 'resnet' (or blocks of that kind) here")
    return "resnet" in used


def _heads(theirs: dict[str, Any], attention: list[bool]) -> dict[str, int]:
    """attention_head_dim is channels of a head in a UNet2DModel, and the number of heads in a UNet2DConditionModel."""
    given = theirs["attention_head_dim"]
    if theirs["_class_name"] == "UNet2DModel":
        return {"heads": 1} if given is None else {"head_channels": given}
    widths = theirs["block_out_channels"]
    heads = given if isinstance(given, list) else [given] * len(widths)
    used = [i for i, has in enumerate(attention) if has or i == len(attention) - 1]
    if len({heads[i] for i in used}) == 1:
        return {"heads": heads[used[0]]}
    if len({widths[i] / heads[i] for i in used}) == 1:
        return {"head_channels": widths[used[0]] // heads[used[0]]}
    raise ValueError(f"attention_head_dim: {given} is neither one number of heads nor heads of one width: no counterpart here")


def unet_settings(unet: UNet, size: int, classes: int | None = None, projection: int | None = None) -> dict[str, Any]:
    """Theirs, for latents ``size`` wide. Raises: ValueError naming what diffusers has no counterpart of."""
    config, context = unet.config, unet.gives.context
    has, cross = [factor in config.attention for factor in config.factors], "CrossAttn" if context else "Attn"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if config.resblock_updown else ("DownBlock2D", "UpBlock2D")
    _check_widths(config.multipliers)
    settings: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel" if context else "UNet2DModel",
        "sample_size": size,
        "in_channels": unet.channels + unet.gives.concat,
        "out_channels": unet.channels,
        "down_block_types": [f"{cross}DownBlock2D" if one else plain[0] for one in has],
        "up_block_types": [f"{cross}UpBlock2D" if one else plain[1] for one in reversed(has)],
        "block_out_channels": [config.channels * m for m in config.multipliers],
        "layers_per_block": config.blocks_per_level[0] if len(set(config.blocks_per_level)) == 1 else list(config.blocks_per_level),
        "dropout": config.dropout,
        "norm_num_groups": _groups(unet),
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "num_class_embeds": classes,
    }
    if not context:
        return settings | _self_attention(config, settings)
    if config.resblock_updown and any(has) and len(has) > 1:
        raise ValueError("resblock_updown: diffusers has no block that joins it with cross-attention at the same size")
    heads = [config.heads_of(width) if i in _attended(config) else 1 for i, width in enumerate(settings["block_out_channels"])]
    return settings | {
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "cross_attention_dim": context,
        "transformer_layers_per_block": config.depth,
        **({"encoder_hid_dim": projection, "encoder_hid_dim_type": "text_proj"} if projection else {}),
    }


def _attended(config: UNetConfig) -> list[int]:
    """Levels with attention: the last has some in the middle."""
    return [i for i, factor in enumerate(config.factors) if factor in config.attention or factor == config.factors[-1]]


def _self_attention(config: UNetConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """What only a UNet2DModel has."""
    widths = [config.channels * config.multipliers[i] for i in _attended(config)]
    heads = sorted({config.heads_of(width) for width in widths})
    each = sorted({width // config.heads_of(width) for width in widths})
    if len(each) > 1 and heads != [1]:
        raise ValueError(f"heads: a UNet2DModel has heads of one width at all sizes, this UNet's are {each} wide (so many heads: {heads})")
    if isinstance(settings["layers_per_block"], list):
        raise ValueError(f"blocks: a UNet2DModel has as many at all sizes, this UNet has {list(config.blocks_per_level)}")
    kind = "resnet" if config.resblock_updown else "conv"
    return {
        "attention_head_dim": each[0] if len(each) == 1 else None,
        "downsample_type": kind,
        "upsample_type": kind,
        "attn_norm_num_groups": settings["norm_num_groups"],
    }


def process_config(given: dict[str, Any]) -> ProcessConfig:
    """Ours of a scheduler_config.json. Raises: ValueError naming the setting that has no counterpart."""
    schedulers = tuple(name for name in CLASSES if name.endswith("Scheduler"))
    theirs = settings_of(given, schedulers)
    return ProcessConfig.parse(
        {
            "schedule": _choice(theirs, "beta_schedule", {theirs: ours for ours, theirs in _SCHEDULES.items()}),
            "beta_start": theirs["beta_start"],
            "beta_end": theirs["beta_end"],
            "T": theirs["num_train_timesteps"],
            "prediction": _choice(theirs, "prediction_type", {theirs: ours for ours, theirs in _PREDICTIONS.items()}),
            "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
        }
    )


def process_settings(config: ProcessConfig, spacing: Spacing) -> dict[str, Any]:
    """A DDIMScheduler with our clock, see `Process.timesteps`: "leading" starts at 1 and stops at t = 0, "trailing" in clean data."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": config.T,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": _SCHEDULES[config.schedule],
        "prediction_type": _PREDICTIONS[config.prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "timestep_spacing": spacing,
        "steps_offset": 1,
        "set_alpha_to_one": spacing == "trailing",
        "clip_sample": False,
    }


def _widths(theirs: dict[str, Any]) -> dict[str, Any]:
    first, *_ = widths = theirs["block_out_channels"]
    if any(width % first for width in widths):
        raise ValueError(f"block_out_channels: {widths} are not all multiples of the first, {first}: no counterpart here")
    return {"channels": first, "multipliers": [width // first for width in widths]}


def _check_widths(multipliers: tuple[int, ...]) -> None:
    if multipliers[0] != 1:
        raise ValueError(f"multipliers: the first must be 1, not {multipliers[0]}: diffusers' nets begin as wide as their first level")


def _attention(kinds: list[str], allowed: dict[str, bool]) -> list[bool]:
    for kind in kinds:
        if kind not in allowed:
            raise ValueError(f"{kind} has no counterpart here: {nearest(str(kind), list(allowed))}")
    return [allowed[kind] for kind in kinds]


def _one(theirs: dict[str, Any], key: str) -> Any:
    """A setting that may be given for each level."""
    value = theirs[key]
    values = value if isinstance(value, list) else [value]
    if not values or any(one != values[0] for one in values) or isinstance(values[0], list):
        raise ValueError(f"{key}: {value} differs from level to level, which has no counterpart here")
    return values[0]


def _choice(theirs: dict[str, Any], key: str, allowed: dict[str, Any]) -> Any:
    if theirs[key] not in allowed:
        raise ValueError(f"{key}: {theirs[key]!r} has no counterpart here: {nearest(str(theirs[key]), list(allowed))}")
    return allowed[theirs[key]]


def _groups(model: nn.Module) -> int:
    groups = sorted({module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)})
    if len(groups) > 1:
        raise ValueError(f"groups: diffusers' norms all have one number of groups, this model's have {groups} (widths they do not divide)")
    return groups[0]
