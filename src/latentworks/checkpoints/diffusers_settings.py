"""What a diffusers class can be set to: its defaults, what of it we have, and what we have not. Tables, and a reader of config.json."""

from collections.abc import Mapping
from typing import Any

from latentworks.config import nearest

__all__ = ["CLASSES", "settings_of"]

_AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64], "layers_per_block": 1, "norm_num_groups": 32, "sample_size": 32, "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
}  # fmt: skip
_UNET = {
    "sample_size": None, "layers_per_block": 2, "dropout": 0.0, "attention_head_dim": 8, "norm_num_groups": 32, "flip_sin_to_cos": True,
    "resnet_time_scale_shift": "default", "num_class_embeds": None,
}  # fmt: skip
_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False, "timestep_spacing": "leading",
}  # fmt: skip

CLASSES: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _AUTOENCODER | {"latent_channels": 4, "shift_factor": None, "use_quant_conv": True, "use_post_quant_conv": True},
    "VQModel": _AUTOENCODER | {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None},
    "UNet2DModel": _UNET | {
        "in_channels": 3, "out_channels": 3, "block_out_channels": [224, 448, 672, 896], "attn_norm_num_groups": None,
        "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3, "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
        "downsample_type": "conv", "upsample_type": "conv",
    },
    "UNet2DConditionModel": _UNET | {
        "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1280,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "transformer_layers_per_block": 1, "encoder_hid_dim": None,
    },
    **dict.fromkeys(
        ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "HeunDiscreteScheduler",
         "UniPCMultistepScheduler"], _SCHEDULER
    ),
}  # fmt: skip
"""Settings we have a counterpart of, by class, with diffusers' defaults."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"), "norm_type": ("group",), "latents_mean": (None,), "latents_std": (None,), "center_input_sample": (False,),
    "time_embedding_type": ("positional",), "time_embedding_dim": (None,), "freq_shift": (0,), "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"), "downsample_padding": (1,), "norm_eps": (1e-5,),
    "add_attention": (True,), "class_embed_type": (None,),
    "only_cross_attention": (False,), "num_attention_heads": (None,), "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "text_proj"), "addition_embed_type": (None,), "resnet_skip_time_act": (False,), "conv_in_kernel": (3,),
    "conv_out_kernel": (3,), "resnet_out_scale_factor": (1,), "time_embedding_act_fn": (None,), "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,), "attention_type": ("default",), "class_embeddings_concat": (False,), "cross_attention_norm": (None,),
    "mid_block_only_cross_attention": (None, False), "reverse_transformer_layers_per_block": (None,), "trained_betas": (None,),
}  # fmt: skip
"""Settings we have one value of."""

_WITHOUT_EFFECT = {
    "force_upcast", "lookup_from_codebook", "upcast_attention", "use_linear_projection", "num_train_timesteps", "addition_time_embed_dim",
    "addition_embed_type_num_heads", "projection_class_embeddings_input_dim",
}  # fmt: skip
"""Settings that change no output of a model we read: precision, training, shapes of weights, options of what is refused."""


def settings_of(given: Mapping[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a config.json, defaults filled in, for one of the ``classes``.

    A scheduler's are read where they say what process a model belongs to; how it steps is a sampler's business.
    Raises: ValueError naming the class or setting that has no counterpart here.
    """
    name = str(given.get("_class_name"))
    if name not in classes:
        raise ValueError(f"_class_name: {name} has no counterpart here: {nearest(name, list(classes))}")
    known, scheduler = CLASSES[name], name.endswith("Scheduler")
    for key, value in given.items():
        if key in _ONLY and value not in _ONLY[key]:
            allowed = " or ".join(repr(one) for one in _ONLY[key])
            raise ValueError(f"{key}: {value!r} of a {name} has no counterpart here, only {allowed} has")
        ignored = scheduler or key.startswith("_") or key in _WITHOUT_EFFECT or value is None or value is False
        if key not in known and key not in _ONLY and not ignored:
            raise ValueError(f"{key}: a {name} with this setting ({value!r}) has no counterpart here")
    return {**known, **{key: value for key, value in given.items() if key in known}, "_class_name": name}
