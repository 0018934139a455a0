"""What the paper prints of its models, and what the authors' code comes to: to be shown beside ours."""

from typing import NamedTuple

from latentworks.conditioners import LayoutConfig, TextConfig
from latentworks.recipe import Recipe

__all__ = ["PUBLISHED", "Published", "unused_output"]


class Published(NamedTuple):
    """Millions of parameters. ``printed`` in the paper's ``table``; ``code``: part -> what the authors' classes and YAML come to.

    ``v100_days`` of training, Table 18, after ``steps`` of it (None: the recipe's).
    """

    table: str
    printed: str
    code: dict[str, float]
    v100_days: float | None = None
    steps: int | None = None


def _unet(
    table: str, printed: str, unet: float, conditioners: float = 0.0, days: float | None = None, steps: int | None = None
) -> Published:  # fmt: skip
    return Published(table, printed, {"unet": unet} | ({"conditioners": conditioners} if conditioners else {}), days, steps)


def _stage(parameters: float, printed: str = "", days: float | None = None) -> Published:
    return Published("Table 18" if printed else "", printed, {"first_stage": parameters}, days)


PUBLISHED: dict[str, Published] = {
    "vq-f4": _stage(55.32, "55M", 29),
    "vq-f4-noattn": _stage(53.22),
    "vq-f8": _stage(67.72, "68M", 66),
    "vq-f8-n256": _stage(67.65),
    "vq-f16": _stage(69.59),
    "kl-f4": _stage(55.31),
    "kl-f8": _stage(83.65),
    "kl-f16": _stage(69.61),
    "kl-f32": _stage(103.88),
    "ldm-4-celebahq-256": _unet("Table 12", "274M", 274.06, days=14.4),
    "ldm-4-ffhq-256": _unet("Table 12", "274M", 274.06, days=26),
    "ldm-4-bedrooms-256": _unet("Table 12", "274M", 274.06, days=60),
    "ldm-8-churches-256": _unet("Tables 12 and 18", "294M and 256M", 294.97, days=18, steps=410_000),
    "ldm-8-imagenet-256": _unet("Table 13", "395M", 394.98, 0.51, days=79, steps=2_900_000),
    "ldm-4-imagenet-256": _unet("Table 3", "400M", 400.92, 0.51, days=271),
    "ldm-4-text-256": _unet("", "", 403.62, 186.15),
    "ldm-kl-8-text-1p4b": _unet("Table 2", "1.45B", 872.30, 581.99),
    "ldm-4-layout-openimages-256": _unet("Table 15", "306M", 246.28, 58.86),
    # 16 layers of tau, as Table 17 has it, come to more than Table 15's sum; its YAML is not released
    "ldm-8-layout-coco-256": _unet("Table 15", "345M", 312.24),
    "ldm-4-superresolution": Published("Table 5", "169M", {"first_stage": 55.32, "unet": 113.62}),
    "ldm-4-inpainting": _unet("Table 15", "215M", 215.23),
    "ldm-4-inpainting-big": _unet("Section 4.5", "387M", 387.25),
    "ldm-4-semantic-256": _unet("Table 15", "215M", 215.23),
    "ldm-4-semantic-512": _unet("", "", 215.23),
    "rdm-768": _unet("", "", 1335.48),
    "sd-v1": _unet("", "", 859.52),
    "ldm-sweep-class-f1": _unet("Table 13", "396M", 396.84),
    "ldm-sweep-class-f2": _unet("Table 13", "391M", 390.89),
    "ldm-sweep-class-f4": _unet("Table 13", "391M", 400.92),  # the table repeats LDM-2's
    "ldm-sweep-class-f8": _unet("Table 13", "395M", 394.98),
    "ldm-sweep-class-f16": _unet("Table 13", "395M", 395.00),
    "ldm-sweep-class-f32": _unet("Table 13", "395M", 395.11),
    "ldm-sweep-celeba-f1": _unet("Table 14", "270M", 270.46),
    "ldm-sweep-celeba-f2": _unet("Table 14", "265M", 264.51),
    "ldm-sweep-celeba-f4": _unet("Table 14", "274M", 274.06),
    "ldm-sweep-celeba-f8": _unet("Table 14", "258M", 257.73),
    "ldm-sweep-celeba-f16": _unet("Table 14", "260M", 257.75),
    "ldm-sweep-celeba-f32": _unet("Table 14", "258M", 257.86),
}


def unused_output(recipe: Recipe) -> int:
    """Parameters of the layer from a transformer back to its vocabulary: the authors' files and counts have it, nothing uses it."""
    conditioners = recipe.conditioners if recipe.kind == "latent_diffusion" else ()
    transformers = [config for config in conditioners if isinstance(config, TextConfig | LayoutConfig)]
    return sum((config.width + 1) * config.vocabulary for config in transformers)
