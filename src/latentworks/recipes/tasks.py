"""Every condition of the paper as a laptop recipe on scenes of emoji (`lw data scenes`), all on the first stage `scenes-ae`."""

from collections.abc import Callable, Sequence
from typing import Literal

from latentworks.conditioners import (
    ConditionerConfig,
    LabelConfig,
    LayoutConfig,
    LowResConfig,
    MaskedImageConfig,
    SegmentationConfig,
    TextConfig,
)
from latentworks.data.transforms import Preprocess
from latentworks.diffusion.process import ProcessConfig
from latentworks.noisy_classifier import NoisyClassifierConfig
from latentworks.recipe import ClassifierRecipe, DiffusionRecipe, FirstStageRecipe, Recipe, SamplingDefaults
from latentworks.recipes.small import TASK_UNET, openmoji_64_ae, robust_decoder
from latentworks.train import TrainConfig

__all__ = ["TASKS"]

_TRAINING = TrainConfig(steps=5000, batch=32, lr=1e-3, warmup=200, decay="cosine", final_lr=0.01, ema=0.999, clip=1.0)
_MUON = _TRAINING.replace(optimiser="muon", lr=2e-3)
"""Fewer steps for the same loss; models that were trained before it keep AdamW."""
_CROPS = Preprocess(size=128, crop_size=64, crop="random", flip=True)
_LAYOUT = LayoutConfig(width=128, layers=1, heads=4, head_channels=32, length=26, vocabulary=1024, classes=1, painted=16, dropout=0.1)
_MAP = SegmentationConfig(classes=1, channels=32)
_TEXT = TextConfig(width=128, layers=1, heads=4, head_channels=32, length=48, vocabulary=448, neighbours=2, dropout=0.1)


def _scenes_ae() -> FirstStageRecipe:
    """KL, f = 4, 4 latent channels, on 64 px crops of scenes of 128 px; best begun from `openmoji-64`'s."""
    emoji = openmoji_64_ae()
    return emoji.replace(name="scenes-ae", data=_CROPS.model_dump(), train=emoji.train.replace(steps=4000, batch=8).model_dump())


def _scenes_decoder() -> FirstStageRecipe:
    """Another decoder for `scenes-ae`, which sees past what a diffusion model gets wrong; `--from` its run."""
    return robust_decoder("scenes-decoder", _scenes_ae(), 2500, 0.5)


def _task(
    name: str,
    what: str,
    conditioners: Sequence[ConditionerConfig],
    data: Preprocess = Preprocess(size=64),
    variants: int = 1,
    guidance: float = 1.0,
    training: TrainConfig = _TRAINING,
    sampler: Literal["ddpm", "dpmpp_2m"] = "dpmpp_2m",
) -> Callable[[], DiffusionRecipe]:
    def make() -> DiffusionRecipe:
        return DiffusionRecipe(
            name=name,
            data=data,
            variants=variants,
            first_stage=_scenes_ae().first_stage,
            conditioners=tuple(conditioners),
            unet=TASK_UNET,
            process=ProcessConfig(prediction="v"),
            train=training,
            sampling=SamplingDefaults(sampler=sampler, steps=25, guidance=guidance),
        )

    make.__doc__ = what
    return make


def _classifier() -> ClassifierRecipe:
    """Of the classes of `scenes-class`, for less than a tenth of its time."""
    return ClassifierRecipe(
        name="scenes-classifier",
        data=Preprocess(size=64),
        first_stage=_scenes_ae().first_stage,
        process=ProcessConfig(prediction="v"),
        classifier=NoisyClassifierConfig(unet=TASK_UNET.replace(channels=32, head_channels=32, dropout=0.1), classes=1),
        train=_TRAINING.replace(steps=2500, ema=0.99).model_dump(),
    )


_WHOLE_128 = Preprocess(size=128)

TASKS: dict[str, Callable[[], Recipe]] = {
    "scenes-ae": _scenes_ae,
    "scenes-decoder": _scenes_decoder,
    "scenes-unconditional": _task(
        "scenes-unconditional", "Parts of scenes without a condition, 64 px, to draw larger ones too.", (), _CROPS, variants=2
    ),
    "scenes-class": _task(
        "scenes-class",
        "Class to image, the class as a token of cross-attention, 64 px.",
        (LabelConfig(classes=1, width=128, dropout=0.1),),
        guidance=3.0,
        training=_MUON.replace(steps=9000),
    ),
    "scenes-class-vector": _task(
        "scenes-class-vector",
        "Class to image, the class added to the time embedding, 64 px.",
        (LabelConfig(classes=1, width=160, route="vector", dropout=0.1),),
        guidance=3.0,
        training=_MUON.replace(steps=9000),
    ),
    "scenes-classifier": _classifier,
    "scenes-map": _task(
        "scenes-map",
        "Label map to image of any size, trained on 64 px crops.",
        (_MAP.replace(dropout=0.1),),
        _CROPS,
        variants=2,
        guidance=2.0,
        training=_MUON.replace(steps=7500),
    ),
    "scenes-layout": _task(
        "scenes-layout", "Boxes to image, 128 px.", (_LAYOUT,), _WHOLE_128, guidance=3.0, training=_TRAINING.replace(steps=2800)
    ),
    "scenes-text-64": _task("scenes-text-64", "What `scenes-text` begins from: the same, 64 px.", (_TEXT,), guidance=3.0),
    "scenes-text": _task(
        "scenes-text",
        "Captions that count and relate to image, 128 px; begun from `scenes-text-64`.",
        (_TEXT,),
        _WHOLE_128,
        guidance=3.0,
        training=_TRAINING.replace(steps=1500, lr=7e-4, warmup=50),
    ),
    "scenes-sr": _task(
        "scenes-sr",
        "Super-resolution x4 of degraded images, trained on 64 px crops.",
        (LowResConfig(degradation="bsr"),),
        _CROPS,
        variants=2,
        training=_MUON.replace(steps=2500),
    ),
    "scenes-sr-bicubic": _task(
        "scenes-sr-bicubic",
        "Super-resolution x4 of images reduced bicubically, trained on 64 px crops.",
        (LowResConfig(),),
        _CROPS,
        variants=2,
        training=_MUON.replace(steps=2500),
    ),
    "scenes-inpaint": _task(
        "scenes-inpaint",
        "Inpainting, trained on 64 px crops.",
        (MaskedImageConfig(),),
        _CROPS,
        variants=2,
        training=_MUON.replace(steps=5500),
        sampler="ddpm",  # its noise mends what a small net gets wrong in the hole
    ),
    "scenes-text-sr": _task(
        "scenes-text-sr", "A caption and a small image to image, 64 px: a hybrid.", (_TEXT, LowResConfig()), Preprocess(size=64)
    ),
    "scenes-layout-map": _task(
        "scenes-layout-map",
        "Boxes and a label map to image, 64 px: a hybrid.",
        (_LAYOUT, _MAP),
        Preprocess(size=64),
    ),
}
"""The last two are hybrids: tokens and channels in one model."""
