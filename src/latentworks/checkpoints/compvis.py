"""Reads the authors' original files and Stable Diffusion 1.x: a ``.ckpt`` or ``.safetensors``, with its YAML or without, becomes ours."""

import re
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from latentworks.checkpoints.clip import clip_assets, clip_settings
from latentworks.checkpoints.compvis_config import Parts, first_stage_config, parse_params
from latentworks.checkpoints.compvis_infer import infer_first_stage, infer_params, with_settings
from latentworks.checkpoints.compvis_keys import COND, EMA, FIRST_STAGE, UNET, authors_keys, ema_key
from latentworks.checkpoints.imported import Imported, as_latent_diffusion
from latentworks.checkpoints.tensors import load_weights, read_tensors, without_weights
from latentworks.checkpoints.vocabulary import read_tokenizer
from latentworks.conditioners import Conditioner, FeaturesConfig, FrozenTextConfig, TextConfig, build_conditioner
from latentworks.config import read_mapping
from latentworks.diffusion.process import Process
from latentworks.first_stage import FirstStage, KLAutoencoder, VQAutoencoder, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet

__all__ = ["VOCABULARY", "load_compvis", "load_compvis_first_stage", "read_compvis"]

VOCABULARY = ".tokenizer.json"
"""How the name of a file's vocabulary ends, which `save_compvis` writes beside it."""

YAML = str | Path | Mapping[str, Any]
"""The authors' YAML: its file, or what it holds."""

_BUFFERS = re.compile(
    r"(betas|(sqrt_|log_|sqrt_recip_|sqrt_recipm1_)?(one_minus_)?alphas_cumprod(_prev)?"
    r"|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|lvlb_weights|logvar|scale_factor|model_ema\.(decay|num_updates)"
    r"|cond_stage_model\.transformer\.text_model\.embeddings\.position_ids)"
)
"""What follows from the settings or is read by itself."""

_LEFT_OUT = {
    "of the training loss": re.compile(r"(first_stage_model\.)?(loss\..*|colorize)"),
    "averaged, of the first stage": re.compile(r"first_stage_model\.model_ema\..*"),
    "of an output layer that nothing uses": re.compile(r"cond_stage_model\.transformer\.to_logits\..*"),
}
_NESTED_CLIP = re.compile(r"^(cond_stage_model\.transformer\.)(?:text_model\.)?(?:encoder\.text_model\.)?(?=embeddings\.|encoder\.|final_)")
"""The text encoder's weights, which some files nest more than once, and others not at all."""


def load_compvis(
    ckpt: str | Path,
    config: YAML | None = None,
    ema: bool = True,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> LatentDiffusion:
    """A model from the authors' ``.ckpt`` (or ``.safetensors``) and YAML, in evaluation mode; a warning says what is not as in the YAML.

    ``config``: default the file of the same name that ends in .yaml; without one, what the weights show is inferred, and the rest is asked
    for by name. ``ema``: take the averaged weights where the
    file has both (some files hold only the averaged ones, under the names of the raw ones). ``tokenizer``: for text models, whose files
    carry none (theirs is bert-base-uncased; CLIP's is found in open-clip-torch); without it only ``batch["tokens"]`` can be given.
    ``settings``: values of the YAML to set or change, by their name, e.g. ``{"num_heads": 8}``. ``dtype`` of the weights.
    Raises: ValueError naming what cannot be read, what is not supported, and every key without a counterpart on either side.
    """
    imported = read_compvis(ckpt, config, ema, tokenizer, settings, dtype)
    for note in imported.notes:
        if "attention head" in note:
            warnings.warn(note, stacklevel=2)
    return as_latent_diffusion(imported, ckpt)


def load_compvis_first_stage(
    ckpt: str | Path, config: YAML | None = None, dtype: torch.dtype = torch.float32
) -> KLAutoencoder | VQAutoencoder:
    """A first stage from its own ``.ckpt`` and YAML, in evaluation mode, without latent statistics.

    Raises: ValueError as `load_compvis`.
    """
    model = _read_first_stage(read_tensors(Path(ckpt)), config, dtype).model
    assert isinstance(model, KLAutoencoder | VQAutoencoder)
    return model


def read_compvis(
    ckpt: str | Path,
    config: YAML | None = None,
    ema: bool = True,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Imported:
    """As `load_compvis`, but reads a first stage's own file too, and what a user should know comes as lines. Raises: as `load_compvis`."""
    path = Path(ckpt)
    state = {_NESTED_CLIP.sub(r"\1text_model.", key): value for key, value in read_tensors(path).items()}
    if config is None and path.with_suffix(".yaml").is_file():
        config = path.with_suffix(".yaml")
    if tokenizer is None and path.with_suffix(VOCABULARY).is_file():
        tokenizer = read_tokenizer(path.with_suffix(VOCABULARY))
    if "encoder.conv_in.weight" in state:
        return _read_first_stage(state, config, dtype)
    given = dict(settings or {})
    params = infer_params(state, given) if config is None else with_settings(_params(config), given)
    parts = parse_params(params, heads_given=bool(given.keys() & {"num_heads", "num_head_channels"}))
    scale = float(state["scale_factor"]) if "scale_factor" in state else parts.scale
    if scale is None:
        raise ValueError(f"{ckpt} has no scale_factor, though its YAML says scale_by_std: the file is incomplete")
    with without_weights():
        model = _build(parts, state, tokenizer)
    notes = [*parts.notes, *_select(state, ema), *_drop_conditioner(state, model)]
    _fill(model, state, dtype)
    model.first_stage.set_statistics(torch.zeros(model.first_stage.channels), torch.tensor(1 / scale))
    return Imported(model.eval(), parts.size, tuple(notes))


def _read_first_stage(state: dict[str, Tensor], config: YAML | None, dtype: torch.dtype) -> Imported:
    values = infer_first_stage(state, "") if config is None else _model(config)
    try:
        parsed = first_stage_config(values, 3)
    except KeyError as error:
        raise ValueError(f"{error.args[0]}: the YAML lacks it; give the authors' config.yaml of this checkpoint") from None
    with without_weights():
        model = build_first_stage(parsed)
    if not isinstance(model, KLAutoencoder | VQAutoencoder):
        raise ValueError("model: the identity first stage has no checkpoint: use IdentityFirstStage")
    notes = _leave_out(state)
    _fill(model, state, dtype)
    return Imported(model.eval(), values["params"]["ddconfig"]["resolution"], tuple(notes))


def _build(parts: Parts, state: Mapping[str, Tensor], tokenizer: Tokenizer | None) -> LatentDiffusion:
    conditioners: list[Conditioner] = []
    for config in parts.conditioners:
        assets: dict[str, str] = {}
        if isinstance(config, TextConfig) and tokenizer is not None:
            assets = {"tokenizer.json": tokenizer.to_str()}
        elif isinstance(config, FrozenTextConfig):
            assets = clip_assets(clip_settings(state), tokenizer)
        conditioners.append(build_conditioner(config, assets))
    first_stage = build_first_stage(parts.first_stage)
    unet = UNet(parts.unet, first_stage.channels, LatentDiffusion.sum_gives(conditioners))
    return LatentDiffusion(first_stage, unet, Process(parts.process), conditioners)


def _fill(model: LatentDiffusion | FirstStage, state: MutableMapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give the model all of ``state``, which is emptied. Raises: ValueError naming every key without a counterpart."""
    keys, own = authors_keys(model), model.state_dict()
    for key in [key for key in state if _BUFFERS.fullmatch(key)]:
        del state[key]
    known = set(keys.values())
    surplus = [key for key in state if key not in known]
    missing = [key for key in keys.values() if key not in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[name].shape)}"
        for name, key in keys.items()
        if key in state and state[key].shape != own[name].shape
    ]
    for wrong, complaint in ((surplus, "keys with no place in the model"), (missing, "weights the file lacks"), (shapes, "other shapes")):
        if wrong:
            raise ValueError(f"checkpoint and YAML do not belong together: {len(wrong)} {complaint}: {', '.join(wrong)}")
    load_weights(model, {name: state.pop(keys[name]) if name in keys else value for name, value in own.items()}, dtype)


def _select(state: MutableMapping[str, Tensor], ema: bool) -> list[str]:
    """Keep one of raw and averaged weights, under the raw names, and leave out what no model needs; lines on what was left out."""
    notes, raw = _leave_out(state), [key for key in state if key.startswith(UNET)]
    averaged = [key for key in state if key.startswith(EMA + "diffusion_model")]
    if ema and averaged:
        if missing := [key for key in raw if ema_key(key) not in state]:
            raise ValueError(f"the checkpoint averages only a part of the UNet, load it with ema=False: no average of {', '.join(missing)}")
        for key in raw:
            state[key] = state.pop(ema_key(key))
        notes.append(f"left out: {len(raw)} raw weights of the UNet, as the file has averaged ones (ema=False or --raw takes the raw ones)")
    elif averaged:
        for key in averaged:
            del state[key]
        notes.append(f"left out: {len(averaged)} averaged weights of the UNet, as the raw ones were asked for")
    return notes


def _leave_out(state: MutableMapping[str, Tensor]) -> list[str]:
    notes = []
    for what, pattern in _LEFT_OUT.items():
        keys = [key for key in state if pattern.fullmatch(key)]
        for key in keys:
            del state[key]
        if keys:
            notes.append(f"left out: {len(keys)} weights {what}")
    return notes


def _drop_conditioner(state: MutableMapping[str, Tensor], model: LatentDiffusion) -> list[str]:
    """Leave out a conditioner's weights where the model has none: a copy of the first stage, or an encoder that is not part of it."""
    keys = [key for key in state if key.startswith(COND)]
    if not keys or any(key.startswith(COND) for key in authors_keys(model).values()):
        return []
    foreign = any(isinstance(conditioner.config, FeaturesConfig) for conditioner in model.conditioners)
    copied = {key: FIRST_STAGE + key.removeprefix(COND) for key in keys}
    same = [key for key, twin in copied.items() if ".loss." in key or (twin in state and torch.equal(state[key], state[twin]))]
    if not foreign and len(same) < len(keys):
        return []  # they will be named as keys with no place
    for key in keys:
        del state[key]
    what = "of an encoder that is no part of this model: give text_features" if foreign else "that repeat the first stage"
    return [f"left out: {len(keys)} weights {what}"]


def _model(config: YAML) -> Mapping[str, Any]:
    values = config if isinstance(config, Mapping) else read_mapping(Path(config))
    model = values.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("params"), Mapping):
        raise ValueError("model: the YAML has no model with params; give the authors' config.yaml of this checkpoint")
    return model


def _params(config: YAML) -> dict[str, Any]:
    params: dict[str, Any] = dict(_model(config)["params"])
    for key in ("unet_config", "first_stage_config"):
        if not isinstance(params.get(key), Mapping):
            raise ValueError(f"{key}: the YAML lacks it; a first stage's own file is read by load_compvis_first_stage")
    return params
