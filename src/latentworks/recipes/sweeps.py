"""The paper's comparison of factors f (Section 4.1), LDM-1 to LDM-32: class-conditional (Table 13), unconditional (Table 14)."""

from collections.abc import Callable
from typing import NamedTuple

from latentworks.conditioners import LabelConfig
from latentworks.data.transforms import Preprocess
from latentworks.first_stage import FirstStageConfig, IdentityConfig
from latentworks.recipe import DiffusionRecipe
from latentworks.recipes.first_stages import autoencoder
from latentworks.recipes.paper import latent_recipe
from latentworks.unet import UNetConfig

__all__ = ["SWEEPS"]


class Row(NamedTuple):
    """A column of the tables. ``attention``: down-sampling factors of the latent, whose sizes the tables print."""

    channels: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    batch: int
    lr: float


_FIRST_STAGES: dict[int, FirstStageConfig] = {
    1: IdentityConfig(in_channels=3),
    2: autoencoder(2, 2048, 2),
    4: autoencoder(4, 8192, 3),
    8: autoencoder(8, 16384, 4),
    16: autoencoder(16, 16384, 8),
    32: autoencoder(32, 16384, 32),  # "88x8x32" in Table 13, 16 channels in Table 8; 32 give the 258M that Table 14 prints
}
_CLASS = {
    1: Row(192, (1, 1, 2, 2, 4, 4), (8, 16, 32), 7, 4.9e-5),
    2: Row(192, (1, 2, 2, 4, 4), (4, 8, 16), 9, 6.3e-5),
    4: Row(192, (1, 2, 3, 5), (2, 4, 8), 40, 8e-5),
    8: Row(256, (1, 2, 4), (1, 2, 4), 64, 6.4e-5),
    16: Row(256, (1, 2, 4), (1, 2, 4), 112, 4.5e-5),
    32: Row(256, (1, 2, 4), (1, 2, 4), 112, 4.5e-5),
}
_UNCONDITIONAL = {
    1: Row(192, (1, 1, 2, 2, 4, 4), (8, 16, 32), 9, 9e-5),
    2: Row(192, (1, 2, 2, 4, 4), (4, 8, 16), 11, 1.1e-4),
    4: Row(224, (1, 2, 3, 4), (2, 4, 8), 48, 9.6e-5),
    8: Row(256, (1, 2, 4), (1, 2, 4), 96, 9.6e-5),
    16: Row(256, (1, 2, 4), (1, 2, 4), 128, 1.3e-4),
    32: Row(256, (1, 2, 4), (1, 2, 4), 128, 1.3e-4),
}


def _class_conditional(f: int) -> Callable[[], DiffusionRecipe]:
    row = _CLASS[f]

    def recipe() -> DiffusionRecipe:
        unet = UNetConfig(channels=row.channels, multipliers=row.multipliers, attention=row.attention, heads=1)
        label = LabelConfig(classes=1000, width=512, null=False)
        return latent_recipe(
            f"ldm-sweep-class-f{f}", _FIRST_STAGES[f], unet, Preprocess(size=256, crop="random"), steps=2_000_000, batch=row.batch,
            lr=row.lr, conditioners=(label,), draw=100,
        )  # fmt: skip

    recipe.__doc__ = f"Table 13: LDM-{f} of the comparison of factors, class-conditional ImageNet."
    return recipe


def _unconditional(f: int) -> Callable[[], DiffusionRecipe]:
    row = _UNCONDITIONAL[f]

    def recipe() -> DiffusionRecipe:
        unet = UNetConfig(channels=row.channels, multipliers=row.multipliers, attention=row.attention, head_channels=32)
        return latent_recipe(
            f"ldm-sweep-celeba-f{f}", _FIRST_STAGES[f], unet, Preprocess(size=256), steps=500_000, batch=row.batch, lr=row.lr, draw=100
        )

    recipe.__doc__ = f"Table 14: LDM-{f} of the comparison of factors, unconditional CelebA-HQ."
    return recipe


SWEEPS: dict[str, Callable[[], DiffusionRecipe]] = {
    **{f"ldm-sweep-class-f{f}": _class_conditional(f) for f in _CLASS},
    **{f"ldm-sweep-celeba-f{f}": _unconditional(f) for f in _UNCONDITIONAL},
}
