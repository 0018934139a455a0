"""The paper's diffusion models with a released YAML or a row of Tables 12 and 15, and the two later ones on the same code.

Numbers are the YAML files'; where the paper prints others, the YAML wins and a comment says so. Learning rates are the effective ones: the
authors multiply the YAML's by batch and processes. Tables are those of arXiv:2112.10752v2.
"""

from collections.abc import Callable
from typing import Any, Literal

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
from latentworks.data.transforms import Preprocess
from latentworks.diffusion.process import ProcessConfig
from latentworks.first_stage import FirstStageConfig
from latentworks.objectives.diffusion import DiffusionObjectiveConfig
from latentworks.recipe import DiffusionRecipe, SamplingDefaults
from latentworks.recipes.first_stages import FIRST_STAGES
from latentworks.train import TrainConfig
from latentworks.unet import UNetConfig

__all__ = ["PAPER", "latent_recipe"]

_LSUN = Preprocess(size=256, flip=True)
_FACES = Preprocess(size=256)
_IMAGENET = Preprocess(size=256, crop="random")
_CROPS = Preprocess(size=384, crop_size=256, crop="random")  # Section 4.3.2
_TEXT = Preprocess(size=256)
_VQ_F4 = UNetConfig(channels=224, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), head_channels=32)
_SEMANTIC = UNetConfig(channels=128, multipliers=(1, 4, 8), attention=(), heads=8)  # the YAML's 32, 16, 8 are factors no level has


def latent_recipe(
    name: str, first_stage: str | FirstStageConfig, unet: UNetConfig, data: Preprocess, *, steps: int, batch: int, lr: float,
    betas: tuple[float, float] = (0.0015, 0.0195), conditioners: tuple[ConditionerConfig, ...] = (), loss: Literal["l1", "l2"] = "l2",
    draw: int = 200, guidance: float = 1.0, **training: Any,
) -> DiffusionRecipe:  # fmt: skip
    """A latent recipe of the authors' kind: T = 1000, "linear" betas, eps, AdamW without clipping, ``draw`` DDIM steps.

    ``first_stage``: a config, or one of `FIRST_STAGES` by name.
    """
    return DiffusionRecipe(
        name=name,
        data=data,
        first_stage=FIRST_STAGES[first_stage]().first_stage if isinstance(first_stage, str) else first_stage,
        conditioners=conditioners,
        unet=unet,
        process=ProcessConfig(beta_start=betas[0], beta_end=betas[1]),
        objective=DiffusionObjectiveConfig(loss=loss),
        train=TrainConfig(steps=steps, batch=batch, lr=lr, clip=None, **training),
        sampling=SamplingDefaults(sampler="ddim", steps=draw, guidance=guidance, spacing="leading"),
    )


def ldm_4_celebahq_256() -> DiffusionRecipe:
    """Table 12: LDM-4, unconditional CelebA-HQ."""
    return latent_recipe("ldm-4-celebahq-256", "vq-f4", _VQ_F4, _FACES, steps=410_000, batch=48, lr=9.6e-5, draw=500)


def ldm_4_ffhq_256() -> DiffusionRecipe:
    """Table 12: LDM-4, unconditional FFHQ."""
    return latent_recipe("ldm-4-ffhq-256", "vq-f4", _VQ_F4, _FACES, steps=635_000, batch=42, lr=8.4e-5)


def ldm_4_bedrooms_256() -> DiffusionRecipe:
    """Table 12: LDM-4, unconditional LSUN-Bedrooms."""
    return latent_recipe("ldm-4-bedrooms-256", "vq-f4", _VQ_F4, _LSUN, steps=1_900_000, batch=48, lr=9.6e-5)


def ldm_8_churches_256() -> DiffusionRecipe:
    """Table 12: LDM-8 on a KL first stage, unconditional LSUN-Churches."""
    unet = UNetConfig(
        channels=192, multipliers=(1, 2, 2, 4, 4), attention=(1, 2, 4, 8), heads=8, scale_shift=True, resblock_updown=True
    )  # fmt: skip
    return latent_recipe(  # Table 12 prints 500k steps, Table 18 410k (and 256M parameters, where the YAML has 295M as Table 12)
        "ldm-8-churches-256", "kl-f8", unet, _LSUN, steps=500_000, batch=96, lr=5e-5, warmup=10_000, betas=(0.0015, 0.0155), loss="l1"
    )


def ldm_8_imagenet_256() -> DiffusionRecipe:
    """Table 13: LDM-8, class-conditional ImageNet (cin256)."""
    # One head, as Table 13 has it and as it was trained; the YAML's 32 channels a head came to mean something later.
    unet = UNetConfig(channels=256, multipliers=(1, 2, 4), attention=(4, 2, 1), heads=1)
    label = LabelConfig(classes=1000, width=512, null=False)  # guided by a classifier, not by dropping the class
    return latent_recipe(  # Table 10 measures it after 2.9M and 4.8M steps
        "ldm-8-imagenet-256", "vq-f8", unet, _IMAGENET, steps=4_800_000, batch=64, lr=6.4e-5, conditioners=(label,)
    )


def ldm_4_imagenet_256() -> DiffusionRecipe:
    """Table 3: LDM-4(-G), class-conditional ImageNet with classifier-free guidance (cin256-v2)."""
    unet = UNetConfig(channels=192, multipliers=(1, 2, 3, 5), attention=(8, 4, 2), heads=1)
    label = LabelConfig(classes=1000, width=512, dropout=0.1)  # the share is ours: the paper does not say
    return latent_recipe(
        "ldm-4-imagenet-256", "vq-f4", unet, _IMAGENET, steps=178_000, batch=1200, lr=1e-4, conditioners=(label,), draw=250, guidance=1.5
    )


def ldm_4_text_256() -> DiffusionRecipe:
    """Released only: LDM-4, text to image, LAION then Conceptual Captions (text2img256)."""
    unet = UNetConfig(channels=192, multipliers=(1, 2, 3, 5), attention=(8, 4, 2), heads=1)  # one head: see ldm_8_imagenet_256
    text = TextConfig(width=640, layers=32)
    return latent_recipe(  # its steps are nowhere told: those of the larger model
        "ldm-4-text-256", "vq-f4", unet, _TEXT, steps=390_000, batch=28, lr=5.6e-5, conditioners=(text,), draw=100
    )


def ldm_kl_8_text_1p4b() -> DiffusionRecipe:
    """Table 2: LDM-KL-8(-G), text to image with 1.45 billion parameters."""
    unet = UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8)
    text = TextConfig(width=1280, layers=32, dropout=0.1)  # the share is ours: the paper does not say
    return latent_recipe(
        "ldm-kl-8-text-1p4b", "kl-f8", unet, _TEXT, steps=390_000, batch=680, lr=1e-4, betas=(0.00085, 0.012), conditioners=(text,),
        draw=250, guidance=1.5,
    )  # fmt: skip


def ldm_4_layout_openimages_256() -> DiffusionRecipe:
    """Table 15: LDM-4, layout to image, OpenImages."""
    unet = UNetConfig(channels=128, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), heads=1, depth=3)  # one head: see ldm_8_imagenet_256
    layout = LayoutConfig(classes=600, attributes=("group",))
    return latent_recipe(
        "ldm-4-layout-openimages-256", "vq-f4", unet, _TEXT, steps=4_400_000, batch=24, lr=4.8e-5, betas=(0.0015, 0.0205), loss="l1",
        conditioners=(layout,),
    )  # fmt: skip


def ldm_8_layout_coco_256() -> DiffusionRecipe:
    """Table 15: LDM-8, layout to image, COCO."""
    unet = UNetConfig(channels=192, multipliers=(1, 2, 4), attention=(4, 2, 1), heads=1, depth=2, dropout=0.1)
    layout = LayoutConfig(classes=172, attributes=("group",))  # 80 things, 92 kinds of stuff
    return latent_recipe(  # no YAML: betas and loss as the OpenImages model's
        "ldm-8-layout-coco-256", "vq-f8", unet, _TEXT, steps=170_000, batch=48, lr=4.8e-5, betas=(0.0015, 0.0205), loss="l1",
        conditioners=(layout,), draw=100,
    )  # fmt: skip


def ldm_4_superresolution() -> DiffusionRecipe:
    """Table 15: LDM-4, super-resolution from 64 to 256 px (bsr_sr)."""
    unet = UNetConfig(channels=160, multipliers=(1, 2, 2, 4), attention=(8,), head_channels=32)  # the YAML's 16 is a factor no level has
    return latent_recipe(
        "ldm-4-superresolution", "vq-f4", unet, _CROPS, steps=860_000, batch=64, lr=6.4e-5, betas=(0.0015, 0.0155),
        conditioners=(LowResConfig(),), draw=100,
    )  # fmt: skip


def ldm_4_inpainting() -> DiffusionRecipe:
    """Table 15: LDM-4, inpainting, the smaller model of Tables 6 and 7 (no attention)."""
    return latent_recipe(  # no YAML: shape and betas as semantic synthesis, whose sizes Table 15 prints; one head, as printed
        "ldm-4-inpainting", "vq-f4-noattn", _SEMANTIC.replace(heads=1), _CROPS, steps=360_000, batch=128, lr=1e-6, betas=(0.0015, 0.0205),
        loss="l1", conditioners=(MaskedImageConfig(),),
    )  # fmt: skip


def ldm_4_inpainting_big() -> DiffusionRecipe:
    """Table 7: LDM-4 big, inpainting (inpainting_big)."""
    unet = UNetConfig(channels=256, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), heads=8, resblock_updown=True)
    return latent_recipe(  # its batch is nowhere told: the smaller one's. The YAML's schedule peaks at a tenth and ends after 50k steps
        "ldm-4-inpainting-big", "vq-f4-noattn", unet, _CROPS, steps=50_000, batch=128, lr=1.28e-5, warmup=1000, decay="cosine",
        final_lr=0.001, betas=(0.0015, 0.0205), loss="l1", conditioners=(MaskedImageConfig(),),
    )  # fmt: skip


def ldm_4_semantic_256() -> DiffusionRecipe:
    """Table 15: LDM-4, semantic map to landscape (its f = 8 there contradicts Section 4.3.2 and the YAML)."""
    return latent_recipe(
        "ldm-4-semantic-256", "vq-f4", _SEMANTIC, _CROPS, steps=360_000, batch=48, lr=4.8e-5, betas=(0.0015, 0.0205), loss="l1",
        conditioners=(SegmentationConfig(classes=182),),
    )  # fmt: skip


def ldm_4_semantic_512() -> DiffusionRecipe:
    """Released only: the same, fine-tuned on crops of 512 px (semantic_synthesis512)."""
    crops = Preprocess(size=768, crop_size=512, crop="random")
    return latent_recipe(  # its steps are nowhere told
        "ldm-4-semantic-512", "vq-f4", _SEMANTIC, crops, steps=50_000, batch=8, lr=8e-6, betas=(0.0015, 0.0205), loss="l1",
        conditioners=(SegmentationConfig(classes=182),),
    )  # fmt: skip


def rdm_768() -> DiffusionRecipe:
    """Later: the network of the retrieval-augmented 768 px model (arXiv:2204.11824); its embeddings come from elsewhere."""
    unet = UNetConfig(channels=448, multipliers=(1, 2, 3, 4), attention=(4, 2, 1), head_channels=32)
    features = FeaturesConfig(width=768, dropout=0.1)
    return latent_recipe(  # steps and batch are nowhere told
        "rdm-768", "kl-f16", unet, Preprocess(size=768), steps=500_000, batch=256, lr=1e-4, betas=(0.0015, 0.015),
        conditioners=(features,), draw=50, guidance=5.0,
    )  # fmt: skip


def sd_v1() -> DiffusionRecipe:
    """Later: Stable Diffusion 1.x, text to image at 512 px."""
    unet = UNetConfig(channels=320, multipliers=(1, 2, 4, 4), attention=(4, 2, 1), heads=8)
    text = FrozenTextConfig(encoder="openai/clip-vit-large-patch14", mask=False, dropout=0.1)
    return latent_recipe(  # steps: those of v1-1, v1-2 and v1-4, the first 237k at 256 px
        "sd-v1", "kl-f8", unet, Preprocess(size=512), steps=1_171_000, batch=2048, lr=1e-4, warmup=10_000, betas=(0.00085, 0.012),
        conditioners=(text,), draw=50, guidance=7.5,
    )  # fmt: skip


PAPER: dict[str, Callable[[], DiffusionRecipe]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        ldm_4_celebahq_256, ldm_4_ffhq_256, ldm_4_bedrooms_256, ldm_8_churches_256, ldm_8_imagenet_256, ldm_4_imagenet_256,
        ldm_4_text_256, ldm_kl_8_text_1p4b, ldm_4_layout_openimages_256, ldm_8_layout_coco_256, ldm_4_superresolution,
        ldm_4_inpainting, ldm_4_inpainting_big, ldm_4_semantic_256, ldm_4_semantic_512, rdm_768, sd_v1,
    )
}  # fmt: skip
