"""Recipes that train on a laptop: both stages on OpenMoji, and the same for anyone's folder."""

from latentworks.conditioners import LabelConfig, LowResConfig, TextConfig
from latentworks.data.transforms import Preprocess
from latentworks.diffusion.process import ProcessConfig
from latentworks.first_stage import KLConfig, VQConfig
from latentworks.nn.discriminator import DiscriminatorConfig
from latentworks.noisy_classifier import NoisyClassifierConfig
from latentworks.objectives.first_stage import FirstStageObjectiveConfig
from latentworks.recipe import ClassifierRecipe, DiffusionRecipe, FirstStageRecipe, SamplingDefaults
from latentworks.train import TrainConfig
from latentworks.unet import UNetConfig

__all__ = [
    "TASK_UNET",
    "class_64",
    "class_64_classifier",
    "openmoji_64",
    "openmoji_64_ae",
    "openmoji_64_ae_vq",
    "openmoji_64_decoder",
    "openmoji_64_text",
    "openmoji_128",
    "robust_decoder",
    "unconditional_64",
]

_FIRST_STAGE_TRAINING = TrainConfig(
    steps=8000, batch=16, optimiser="adam", lr=2e-3, betas=(0.9, 0.99), warmup=100, decay="cosine", final_lr=0.01, ema=0.999, clip=1.0
)
_SMALL_UNET = UNetConfig(channels=64, multipliers=(1, 2, 3), blocks=1, attention=(2, 4), head_channels=32, groups=8)
TASK_UNET = UNetConfig(channels=40, multipliers=(1, 2, 2), blocks=1, attention=(2, 4), head_channels=20, groups=8)
"""Of models that are told much by their condition: the tasks' and the enlarger."""
_TEXT = TextConfig(
    width=256, layers=2, heads=4, length=24, vocabulary=2048, neighbours=2, vector=256, aligned=8, dropout=0.1,
    word_dropout=0.5, word_shuffle=0.15,
)  # fmt: skip
_LATENT_TRAINING = TrainConfig(
    steps=6000, batch=32, optimiser="muon", lr=2e-3, warmup=100, decay="cosine", final_lr=0.02, ema=0.999, clip=1.0
)


def openmoji_64_ae() -> FirstStageRecipe:
    """KL, f = 4, 4 latent channels, on 32 px crops of 64 px images."""
    return FirstStageRecipe(
        name="openmoji-64-ae",
        data=Preprocess(size=64, crop_size=32, crop="random", flip=True),
        first_stage=KLConfig(channels=32, multipliers=(1, 2, 2), blocks=1, latent_channels=4, mid_attention="none", groups=8),
        objective=FirstStageObjectiveConfig(
            perceptual_weight=0.05,
            adversarial_weight=0.1,
            discriminator=DiscriminatorConfig(channels=32, layers=2),
            discriminator_start=0.6,
        ),
        train=_FIRST_STAGE_TRAINING,
    )


def openmoji_64_ae_vq() -> FirstStageRecipe:
    """VQ, f = 4, 4 latent channels, 8,192 codes (the paper's number at f = 4)."""
    kl = openmoji_64_ae()
    return kl.replace(
        name="openmoji-64-ae-vq",
        first_stage=VQConfig(**{**kl.first_stage.model_dump(), "kind": "vq", "codes": 8192}).model_dump(),
        objective=kl.objective.replace(reduction="mean", regulariser_weight=1.0, restart_dead_after=100, quantise_from=0.5).model_dump(),
    )


def robust_decoder(name: str, of: FirstStageRecipe, steps: int, noise: float) -> FirstStageRecipe:
    """Begun from a stage of that recipe: its decoder goes on alone, on noisy latents, without a discriminator."""
    objective = of.objective.replace(decoder_only=True, latent_noise=noise, perceptual_weight=0.5, adversarial_weight=0.0)
    return of.replace(name=name, objective=objective.model_dump(), train=of.train.replace(steps=steps, lr=1e-3).model_dump())


def openmoji_64_decoder() -> FirstStageRecipe:
    """Another decoder for `openmoji_64_ae`, which sees past what a diffusion model gets wrong; `--from` its run."""
    return robust_decoder("openmoji-64-decoder", openmoji_64_ae(), 4000, 0.25)


def openmoji_64_text() -> DiffusionRecipe:
    """Captions learn which latents of `openmoji_64_ae` are theirs, before a net does: what `openmoji_64` begins from."""
    return openmoji_64().replace(
        name="openmoji-64-text",
        conditioners=(_TEXT.replace(word_shuffle=0.3).model_dump(),),
        objective={"kind": "alignment"},
        train=_LATENT_TRAINING.replace(steps=1000, batch=256, optimiser="adamw", lr=1e-3).model_dump(),
    )


def openmoji_64() -> DiffusionRecipe:
    """Text to image in the latent space of `openmoji_64_ae`, its text that of `openmoji_64_text`; `--from` its run."""
    return DiffusionRecipe(
        name="openmoji-64",
        data=Preprocess(size=64),
        first_stage=openmoji_64_ae().first_stage,
        conditioners=(_TEXT,),
        unet=_SMALL_UNET,
        process=ProcessConfig(prediction="v"),
        train=_LATENT_TRAINING,
        sampling=SamplingDefaults(guidance=1.5),
    )


def openmoji_128() -> DiffusionRecipe:
    """Super-resolution x2 to 128 px in the latent space of `openmoji_64_ae`, trained on 64 px crops: enlarges what `openmoji_64` draws."""
    return openmoji_64().replace(
        name="openmoji-128",
        data=Preprocess(size=128, crop_size=64, crop="random", flip=True).model_dump(),
        variants=2,
        conditioners=(LowResConfig(factor=2).model_dump(),),
        unet=TASK_UNET.model_dump(),
        train=_LATENT_TRAINING.replace(steps=2500, warmup=200, final_lr=0.01).model_dump(),
        sampling={"steps": 10},
    )


def class_64() -> DiffusionRecipe:
    """Class to image for a folder whose sub-folders are the classes."""
    labels = LabelConfig(classes=1, width=256, dropout=0.1)
    return openmoji_64().replace(name="class-64", conditioners=(labels.model_dump(),), sampling={})


def unconditional_64() -> DiffusionRecipe:
    """Images without any condition, for a plain folder."""
    return openmoji_64().replace(name="unconditional-64", conditioners=(), sampling={})


def class_64_classifier() -> ClassifierRecipe:
    """Classes of noisy latents, to guide `class_64` or `unconditional_64`."""
    return ClassifierRecipe(
        name="class-64-classifier",
        data=Preprocess(size=64),
        first_stage=openmoji_64_ae().first_stage,
        process=openmoji_64().process,
        classifier=NoisyClassifierConfig(unet=_SMALL_UNET.replace(channels=32, dropout=0.1).model_dump(), classes=1),
        train=_LATENT_TRAINING.replace(steps=3000, optimiser="adamw", lr=5e-4, weight_decay=0.05),
    )
