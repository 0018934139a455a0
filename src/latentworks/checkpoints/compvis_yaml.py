"""Our configs as the authors' YAML. What their classes have no option for becomes a key of ours, which only we read, and is said."""

from typing import Any, NoReturn

from latentworks.checkpoints.compvis_config import SCHEDULES
from latentworks.conditioners import (
    Conditioner,
    FeaturesConditioner,
    FrozenTextConditioner,
    LabelConditioner,
    LayoutConditioner,
    LowResConditioner,
    MaskedImageConditioner,
    SegmentationConditioner,
    TextConditioner,
)
from latentworks.diffusion.process import ProcessConfig
from latentworks.first_stage import FirstStage, IdentityFirstStage, KLAutoencoder, KLConfig, VQAutoencoder, VQConfig
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet

__all__ = ["to_yaml"]

_ENCODERS = "ldm.modules.encoders.modules"


def to_yaml(model: LatentDiffusion | FirstStage, size: int) -> tuple[dict[str, Any], list[str]]:
    """The YAML of a model that draws ``size`` pixels a side, and a line for each thing that the authors' code does not know.

    Raises: ValueError naming what their files have no place for.
    """
    if isinstance(model, FirstStage):
        config, notes = _first_stage(model, size)
        return {"model": config}, notes
    first_stage, notes = _first_stage(model.first_stage, size)
    conditioning, more = _conditioning(model)
    net, most = _unet(model.unet)
    added = [c for c in model.conditioners if isinstance(c, LabelConditioner) and c.config.route == "vector"]
    net |= {"num_classes": added[0].config.classes} if added else {}
    params = {
        **_process(model.process.config),
        "image_size": max(1, size // model.first_stage.factor),
        "channels": model.first_stage.channels,
        "scale_factor": 1 / float(model.first_stage.std),
        **conditioning,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": net},
        "first_stage_config": first_stage,
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}, notes + more + most


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"the authors' files have no place for {what}: save a model folder or diffusers' layout instead")


def _extension(key: str, value: object) -> str:
    return f"{key}: {value} is an option their code does not have: only this program reads the file"


def _process(config: ProcessConfig) -> dict[str, Any]:
    if config.zero_terminal_snr:
        _refuse("zero_terminal_snr")
    names = {ours: theirs for theirs, ours in SCHEDULES.items()}
    return {
        "beta_schedule": names[config.schedule],
        "linear_start": config.beta_start,
        "linear_end": config.beta_end,
        "timesteps": config.T,
        "parameterization": config.prediction,
    }


def _first_stage(model: FirstStage, size: int) -> tuple[dict[str, Any], list[str]]:
    if isinstance(model, IdentityFirstStage):
        return {"target": "ldm.models.autoencoder.IdentityFirstStage", "params": {}}, []
    assert isinstance(model, KLAutoencoder | VQAutoencoder)
    config: KLConfig | VQConfig = model.config
    resolution = size if size % config.factor == 0 else 256
    net: dict[str, Any] = {
        "double_z": isinstance(config, KLConfig),
        "z_channels": config.latent_channels,
        "resolution": resolution,
        "in_channels": config.in_channels,
        "out_ch": config.in_channels,
        "ch": config.channels,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.blocks,
        "attn_resolutions": [resolution // factor for factor in config.attention],
        "dropout": config.dropout,
    }
    net |= {} if config.mid_attention == "full" else {"attn_type": config.mid_attention}
    if config.mid_attention == "none" and config.attention:
        _refuse("attention in a first stage without attention in its middle")
    notes = []
    if config.groups != 32:
        net["groups"] = config.groups
        notes.append(_extension("first_stage_config: groups", config.groups))
    params: dict[str, Any] = {"embed_dim": config.embedding, "ddconfig": net, "lossconfig": {"target": "torch.nn.Identity"}}
    if isinstance(config, KLConfig):
        return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}, notes
    params |= {"n_embed": config.codes}
    params |= {} if config.legacy else {"legacy": False}  # which loss it was trained with; nothing in use depends on it
    return {"target": "ldm.models.autoencoder.VQModelInterface", "params": params}, notes


def _unet(unet: UNet) -> tuple[dict[str, Any], list[str]]:
    config = unet.config
    heads = {"num_head_channels": config.head_channels or 32} if config.heads is None else {"num_heads": config.heads}
    net: dict[str, Any] = {
        "image_size": 32,  # which their code does not use
        "in_channels": unet.channels + unet.gives.concat,
        "out_channels": unet.channels,
        "model_channels": config.channels,
        "attention_resolutions": list(config.attention),
        "num_res_blocks": config.blocks if isinstance(config.blocks, int) else list(config.blocks),
        "channel_mult": list(config.multipliers),
        **heads,
        "dropout": config.dropout,
        "use_scale_shift_norm": config.scale_shift,
        "resblock_updown": config.resblock_updown,
        "conv_resample": config.conv_resample,
        "use_new_attention_order": config.attention_order == "qkv",
    }
    if unet.gives.context:
        net |= {"use_spatial_transformer": True, "transformer_depth": config.depth, "context_dim": unet.gives.context}
    if config.decoder_heads is not None and not unet.gives.context:
        if config.heads is None:
            _refuse("decoder_heads beside head_channels")
        net |= {"num_heads_upsample": config.decoder_heads}
    notes = []
    if config.groups != 32:
        net["groups"] = config.groups
        notes.append(_extension("unet_config: groups", config.groups))
    if not isinstance(config.blocks, int):
        notes.append(_extension("unet_config: num_res_blocks", list(config.blocks)))
    return net, notes


def _conditioning(model: LatentDiffusion) -> tuple[dict[str, Any], list[str]]:
    """conditioning_key, cond_stage_key and cond_stage_config."""
    joined = [c for c in model.conditioners if isinstance(c, LowResConditioner | MaskedImageConditioner | SegmentationConditioner)]
    others = [c for c in model.conditioners if c not in joined]
    if len(joined) > 1 or len(others) > 1:
        _refuse(f"{len(model.conditioners)} conditioners of these kinds at once")
    if not others and not joined:
        return {"cond_stage_config": "__is_unconditional__"}, []
    if not joined:
        (other,) = others
        if isinstance(other, LabelConditioner) and other.config.route == "vector":
            if other.config.null:
                _refuse("a null class among classes that are added to the time embedding")
            return {"conditioning_key": "adm", "cond_stage_key": "class_label", "cond_stage_config": {"target": "torch.nn.Identity"}}, []
        assert isinstance(other, Conditioner)
        stage, notes = _context(other)
        return {"conditioning_key": "crossattn", **stage}, notes
    if not others:
        return {"conditioning_key": "concat", **_joined(joined[0])}, []
    if isinstance(joined[0], SegmentationConditioner) or (isinstance(joined[0], MaskedImageConditioner) and joined[0].hole):
        _refuse(f"a text or class beside {joined[0].field} in this convention")
    assert isinstance(others[0], Conditioner)
    stage, notes = _context(others[0])
    return {"conditioning_key": "hybrid", **stage}, notes


def _joined(conditioner: LowResConditioner | MaskedImageConditioner | SegmentationConditioner) -> dict[str, Any]:
    match conditioner:
        case LowResConditioner():
            if (conditioner.config.scale, conditioner.config.fold) != (1, 1):
                _refuse("a small image that is not of the latent's size")
            return {"cond_stage_key": "LR_image", "cond_stage_config": {"target": "torch.nn.Identity"}}
        case MaskedImageConditioner():
            if conditioner.config.convention == "sd":
                _refuse("a masked image in Stable Diffusion's convention without a text")
            return {"cond_stage_key": "masked_image", "cond_stage_config": "__is_first_stage__"}
    config = conditioner.config
    params = {"n_stages": config.stages, "in_channels": config.classes, "out_channels": config.channels}
    return {"cond_stage_key": "segmentation", "cond_stage_config": {"target": f"{_ENCODERS}.SpatialRescaler", "params": params}}


def _context(conditioner: Conditioner) -> tuple[dict[str, Any], list[str]]:
    """What cross-attention looks at."""
    params: dict[str, Any]
    match conditioner:
        case LabelConditioner(config=label) if label.route == "context":
            rows = label.classes + label.null
            params = {"n_classes": rows, "embed_dim": label.width, "key": "class_label"}
            notes = [] if label.null == (rows == 1001) else [_extension("cond_stage_config: null", label.null)]
            params |= {} if not notes else {"null": label.null}
            return _stage("class_label", f"{_ENCODERS}.ClassEmbedder", params), notes
        case LayoutConditioner() if conditioner.config.painted:
            _refuse("boxes that are painted, beside their tokens")
        case TextConditioner() if conditioner.config.extension:
            _refuse(conditioner.config.extension)
        case TextConditioner(config=text) | LayoutConditioner(config=text):
            params = {"n_embed": text.width, "n_layer": text.layers, "vocab_size": text.vocabulary, "max_seq_len": text.length}
            ours = {"heads": text.heads, "dim_head": text.head_channels}
            ours = {key: value for key, value in ours.items() if value != {"heads": 8, "dim_head": 64}[key]}
            layout = isinstance(conditioner, LayoutConditioner)
            classes = {"classes": conditioner.config.classes} if isinstance(conditioner, LayoutConditioner) else {}
            theirs = text.vocabulary == 30522 and not layout
            params |= {**ours, **classes} | ({} if theirs else {"use_tokenizer": False})
            notes = [_extension(f"cond_stage_config: {key}", value) for key, value in ours.items()]
            return _stage("coordinates_bbox" if layout else "caption", f"{_ENCODERS}.BERTEmbedder", params), notes
        case FrozenTextConditioner(config=frozen):
            is_clip = "clip" in str(getattr(conditioner.encoder.config, "model_type", ""))
            if not is_clip or frozen.projection is not None or frozen.mask:
                _refuse(f"the text encoder {frozen.encoder!r}, as only CLIP without a mask and a projection has one")
            return _stage("txt", f"{_ENCODERS}.FrozenCLIPEmbedder", {"version": frozen.encoder, "max_length": frozen.length}), []
        case FeaturesConditioner():
            return _stage("text_features", "torch.nn.Identity", {}), []
    return _refuse(f"the conditioner {type(conditioner).__name__}")


def _stage(key: str, target: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"cond_stage_key": key, "cond_stage_config": {"target": target, "params": params} if params else {"target": target}}
