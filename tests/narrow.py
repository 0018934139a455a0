"""Any recipe made so small that it trains in a second or two: what it is made of stays, its widths, sizes and rates do not.

Kept are kinds, factors, levels, multipliers, depth, where attention is and how its heads are told, whether there is a warm-up, a crop,
guidance, a dropped condition, and every option that takes another path through the code. A level has one block, a transformer of a
condition two layers. A latent recipe has the plainest first stage of its kind, f = 4 at most, as others are recipes themselves; a frozen
text encoder is the one in the folder "encoder". Recipes that differ in numbers alone become equal.
"""

from latentworks.conditioners import (
    ConditionerConfig,
    FrozenTextConfig,
    LabelConfig,
    LayoutConfig,
    MaskedImageConfig,
    SegmentationConfig,
    TextConfig,
)
from latentworks.data.transforms import Preprocess
from latentworks.first_stage import FirstStageConfig, IdentityConfig, VQConfig
from latentworks.nn.perceptual import LPIPSConfig
from latentworks.recipe import ClassifierRecipe, FirstStageRecipe, Recipe
from latentworks.train import TrainConfig

__all__ = ["STEPS", "narrow"]

STEPS = 20
LATENT = 2  # channels of a latent
WIDTH = 8  # of the UNet
INTERVALS = {"log": 10, "checkpoint": 8, "evaluate": STEPS, "held_out": 2}
CONTEXT = {"width": 8, "layers": 2, "heads": 2, "head_channels": 4}


def narrow(recipe: Recipe) -> Recipe:
    """A recipe of the same shape for the smallest images its networks take, `STEPS` steps of 2 images. Its name stays."""
    common = {"train": _training(recipe.train), "intervals": INTERVALS}
    if isinstance(recipe, FirstStageRecipe):
        return recipe.replace(**common, **_first_stage_values(recipe))
    classifies = isinstance(recipe, ClassifierRecipe)
    unet = recipe.classifier.unet if classifies else recipe.unet
    first_stage = _under_a_latent_model(recipe.first_stage)
    heads = {"heads": unet.heads and min(unet.heads, 4), "head_channels": unet.head_channels and 4}
    attention = tuple(sorted(unet.attention, reverse=True))
    side = unet.factors[-1] * (1 if isinstance(first_stage, IdentityConfig) else first_stage.factor)
    common["data"] = _images(recipe.data, side, side)
    common["first_stage"] = first_stage.model_dump()
    common["process"] = recipe.process.replace(beta_start=0.0015, beta_end=0.0195).model_dump()
    unet = unet.replace(channels=WIDTH, blocks=1, groups=2, attention=attention, **heads)
    if classifies:
        return recipe.replace(**common, classifier=recipe.classifier.replace(unet=unet.model_dump()).model_dump())
    return recipe.replace(
        **common,
        conditioners=[_condition(config).model_dump() for config in recipe.conditioners],
        unet=unet.model_dump(),
        sampling=recipe.sampling.replace(steps=2, guidance=min(recipe.sampling.guidance, 2.0)).model_dump(),
    )


def _first_stage(config: FirstStageConfig) -> FirstStageConfig:
    """With the same levels and attention, and two channels of latent; an identity has nothing to narrow."""
    if isinstance(config, IdentityConfig):
        return config
    narrow = config.replace(channels=4, blocks=1, groups=2, latent_channels=LATENT)
    return narrow.replace(codes=16) if isinstance(narrow, VQConfig) else narrow


def _under_a_latent_model(config: FirstStageConfig) -> FirstStageConfig:
    """The plainest of its kind."""
    if isinstance(config, IdentityConfig):
        return config
    return _first_stage(config).replace(multipliers=(1, 1, 1)[: len(config.multipliers)], attention=(), mid_attention="none")


def _first_stage_values(recipe: FirstStageRecipe) -> dict:
    net, objective = _first_stage(recipe.first_stage), recipe.objective
    patch = 3 * 2**objective.discriminator.layers
    side = -(-patch // net.factor) * net.factor
    early = objective.discriminator_start < 0.05
    judged = objective.replace(
        discriminator=objective.discriminator.replace(channels=4).model_dump(),
        perceptual={"kind": "none"} if isinstance(objective.perceptual, LPIPSConfig) else {"kind": "efficientnet", "stages": 2},
        regulariser_weight=1e-3,
        perceptual_weight=0.1,
        adversarial_weight=0.5,
        discriminator_start=0.0 if early else 0.5,
        discriminator_warmup=min(objective.discriminator_warmup, 0.1),
        restart_dead_after=min(objective.restart_dead_after, 5),
    )  # LPIPS's weights are not on every machine
    return {"data": _images(recipe.data, side, net.factor), "first_stage": net.model_dump(), "objective": judged.model_dump()}


def _images(data: Preprocess, side: int, multiple: int) -> dict:
    """A crop stays a crop, of images one multiple larger."""
    crop = side if data.crop_size not in (None, data.size) else None
    return data.replace(size=side + multiple if crop else side, crop_size=crop, flip=False).model_dump()


def _training(config: TrainConfig) -> dict:
    rates = {"lr": 1e-3, "betas": (0.9, 0.99), "final_lr": min(config.final_lr, 0.1), "ema": min(config.ema, 0.9)}
    return config.replace(steps=STEPS, batch=2, warmup=min(config.warmup, 2), **rates).model_dump()


def _condition(config: ConditionerConfig) -> ConditionerConfig:
    dropout = {"dropout": min(config.dropout, 0.1)}
    match config:
        case TextConfig():
            return config.replace(**CONTEXT, length=8, vocabulary=300, vector=4 * WIDTH if config.vector else 0, **dropout)
        case FrozenTextConfig():
            return config.replace(encoder="encoder", length=8, **dropout)
        case LabelConfig():
            return config.replace(classes=1, width=8 if config.route == "context" else 4 * WIDTH, **dropout)
        case LayoutConfig():
            return config.replace(**CONTEXT, classes=4, length=26, vocabulary=100, **dropout)
        case SegmentationConfig():
            return config.replace(classes=4, **dropout)
        case MaskedImageConfig():
            return config.replace(channels=LATENT, **dropout)
    return config.replace(**dropout)
