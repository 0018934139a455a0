"""What the authors' files call our weights. Their structure is ours, so a few rules in one direction say it all; the other is a look-up."""

import re
from collections.abc import Callable

from torch import nn

from latentworks.conditioners import LabelConditioner
from latentworks.first_stage import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.unet import UNet

__all__ = ["COND", "EMA", "FIRST_STAGE", "UNET", "authors_keys", "ema_key"]

FIRST_STAGE, UNET, COND, EMA = "first_stage_model.", "model.diffusion_model.", "cond_stage_model.", "model_ema."

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_OURS_ALONE = re.compile(r"(.*\.)?(mean|std|quantizer\.counts)")
"""What their files do not have: latent statistics and the count of codes."""

_FIRST_STAGE_RULES: tuple[Rule, ...] = (
    (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up.\1.upsample."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.mid\.resnet", ".mid.block_"),
    (r"\.mid\.attention\.", ".mid.attn_1."),
    (r"\.(attn_1|attn\.\d+)\.(qkv|out)\.", r".\1.to_\2."),  # attn_type: linear
    (r"\.skip\.", ".nin_shortcut."),
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
)

_BLOCK = r"^((?:in|out)put_blocks\.\d+\.\d+|middle_block\.\d+)\."
_UNET_RULES: tuple[Rule, ...] = (
    # places
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^encoder\.(\d+)\.", lambda m: f"input_blocks.{int(m[1]) + 1}."),
    (r"^decoder\.", "output_blocks."),
    (r"^middle\.(0\.resnet|0\.attention|1\.resnet)\.", lambda m: f"middle_block.{('0.r', '0.a', '1.r').index(m[1][:3])}."),
    (r"^(input_blocks\.\d+)\.resample\.conv\.", r"\1.0.op."),
    (r"^((?:in|out)put_blocks\.\d+)\.resnet\.", r"\1.0."),
    (r"^((?:in|out)put_blocks\.\d+)\.attention\.", r"\1.1."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    # residual blocks
    (_BLOCK + r"norm1\.", r"\1.in_layers.0."),
    (_BLOCK + r"conv1\.", r"\1.in_layers.2."),
    (_BLOCK + r"emb\.", r"\1.emb_layers.1."),
    (_BLOCK + r"norm2\.", r"\1.out_layers.0."),
    (_BLOCK + r"conv2\.", r"\1.out_layers.3."),
    (_BLOCK + r"skip\.", r"\1.skip_connection."),
    # transformer blocks
    (r"\.blocks\.", ".transformer_blocks."),
    (r"\.(self|cross)_attention\.", lambda m: {"self": ".attn1.", "cross": ".attn2."}[m[1]]),
    (r"\.(attn[12])\.(q|k|v)\.", r".\1.to_\2."),
    (r"\.(attn[12])\.out\.", r".\1.to_out.0."),
    (r"\.feed_forward\.proj_in\.", ".ff.net.0.proj."),
    (r"\.feed_forward\.proj_out\.", ".ff.net.2."),
)

_CONDITIONER_RULES: tuple[Rule, ...] = (
    (r"^transformer\.tokens\.", "transformer.token_emb."),
    (r"^transformer\.positions\.", "transformer.pos_emb.emb."),
    (r"^transformer\.layers\.(\d+)\.norm\.", r"transformer.attn_layers.layers.\1.0."),
    (r"^transformer\.layers\.(\d+)\.inner\.", r"transformer.attn_layers.layers.\1.1."),
    (r"\.1\.(q|k|v)\.weight$", r".1.to_\1.weight"),
    (r"\.1\.out\.(weight|bias)$", r".1.to_out.\1"),
    (r"(layers\.\d+\.1)\.0\.", r"\1.net.0.0."),
    (r"(layers\.\d+\.1)\.2\.", r"\1.net.2."),
    (r"^encoder\.", "transformer.text_model."),
    (r"^mapper\.", "channel_mapper."),
)


def authors_keys(model: LatentDiffusion | FirstStage | UNet) -> dict[str, str]:
    """Our name -> the authors' name of every weight, one to one; a first stage's as in its own file.

    Raises: ValueError when two conditioners have weights, for which their files have one place.
    """
    names = [name for name in model.state_dict() if not _OURS_ALONE.fullmatch(name)]
    if isinstance(model, FirstStage):
        return {name: _apply(_FIRST_STAGE_RULES, name) for name in names}
    if isinstance(model, UNet):
        return _unet_keys(names)
    keys = {f"unet.{name}": key for name, key in _unet_keys(list(model.unet.state_dict())).items()}
    for name in names:
        if name.startswith("first_stage."):
            keys[name] = FIRST_STAGE + _apply(_FIRST_STAGE_RULES, name.removeprefix("first_stage."))
        elif name.startswith("conditioners."):
            _, index, rest = name.split(".", 2)
            keys[name] = _conditioner_key(model.conditioners[int(index)], rest)
    if len(set(keys.values())) < len(keys):
        raise ValueError("conditioners: the authors' files have one place for conditioners with weights, and this model has several")
    return keys


def ema_key(key: str) -> str:
    """Where the average of one of the UNet's weights lies: its name without dots (``LitEma``)."""
    return EMA + key.removeprefix("model.").replace(".", "")


def _unet_keys(names: list[str]) -> dict[str, str]:
    attended = {name.split(".attention.")[0] for name in names if name.startswith("decoder.") and ".attention." in name}
    keys = {}
    for name in names:
        place = 2 if name.split(".resample.")[0] in attended else 1  # behind the residual block and, if any, the attention
        keys[name] = UNET + _apply(((r"^decoder\.(\d+)\.resample\.", rf"decoder.\1.{place}."), *_UNET_RULES), name)
    return keys


def _conditioner_key(conditioner: nn.Module, name: str) -> str:
    if isinstance(conditioner, LabelConditioner) and conditioner.config.route == "vector":
        return UNET + name.replace("embedding", "label_emb")
    return COND + _apply(_CONDITIONER_RULES, name)


def _apply(rules: tuple[Rule, ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
