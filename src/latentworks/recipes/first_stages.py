"""The paper's first stages (Table 8): the released ones with the numbers of their YAML files, the others as far as the table says."""

from collections.abc import Callable
from typing import NamedTuple

from latentworks.data.transforms import Preprocess
from latentworks.first_stage import KLConfig, VQConfig
from latentworks.nn.discriminator import DiscriminatorConfig
from latentworks.nn.perceptual import LPIPSConfig
from latentworks.objectives.first_stage import FirstStageObjectiveConfig
from latentworks.recipe import FirstStageRecipe
from latentworks.train import TrainConfig

__all__ = ["FIRST_STAGES", "autoencoder"]


class Row(NamedTuple):
    """What first stages differ in. ``codes`` None: KL. ``start``: the step at which the discriminator starts."""

    f: int
    codes: int | None
    channels: int
    steps: int
    batch: int
    layers: int = 3
    start: int = 50_001
    weight: float = 0.5
    attention: bool = True


# The multipliers of f = 2 are ours: no YAML of such a stage was released. Those of f = 8 differ, see `autoencoder`.
_MULTIPLIERS = {2: (1, 2), 4: (1, 2, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}
_ATTENTION = {2: (), 4: (), 16: (16,), 32: (16, 32)}

# Steps are the released checkpoints'. Rows without a YAML (see _UNRELEASED) train as their nearest released sibling does.
_ROWS = {
    "vq-f2": Row(2, 2048, 2, 533_066, 8, start=0, weight=0.75),
    "vq-f2-n64": Row(2, 64, 2, 533_066, 8, start=0, weight=0.75),
    "vq-f4": Row(4, 8192, 3, 533_066, 8, start=0, weight=0.75),
    "vq-f4-n256": Row(4, 256, 3, 533_066, 8, start=0, weight=0.75),
    "vq-f4-noattn": Row(4, 8192, 3, 658_131, 8, start=11, weight=0.75, attention=False),
    "vq-f8": Row(8, 16384, 4, 971_043, 10, layers=2, start=1, weight=0.6),
    "vq-f8-n256": Row(8, 256, 4, 1_608_649, 10, start=250_001, weight=0.75),
    "vq-f16": Row(16, 16384, 8, 1_101_166, 14, layers=2, start=250_001, weight=0.75),
    "vq-f32": Row(32, 16384, 16, 1_101_166, 14, layers=2, start=250_001, weight=0.75),
    "kl-f2": Row(2, None, 2, 176_991, 10),
    "kl-f4": Row(4, None, 3, 176_991, 10),
    "kl-f8": Row(8, None, 4, 246_803, 4),
    "kl-f16": Row(16, None, 16, 442_998, 6),
    "kl-f16-c8": Row(16, None, 8, 442_998, 6),
    "kl-f32": Row(32, None, 64, 406_763, 6),
    "kl-f32-c16": Row(32, None, 16, 406_763, 6),
}
_UNRELEASED = ("vq-f2", "vq-f2-n64", "vq-f4-n256", "vq-f32", "kl-f2", "kl-f16-c8", "kl-f32-c16")


def autoencoder(f: int, codes: int | None, channels: int, attention: bool = True) -> KLConfig | VQConfig:
    """The network of a row of Table 8: factor, codebook entries (None: KL) and latent channels."""
    # kl-f8 is 1, 2, 4, 4 with attention in the middle only, vq-f8 is 1, 2, 2, 4 with attention at 32 px too (their YAML files)
    multipliers, places = ((1, 2, 4, 4), ()) if codes is None else ((1, 2, 2, 4), (8,))
    sizes = {
        "multipliers": _MULTIPLIERS.get(f, multipliers),
        "latent_channels": channels,
        "attention": _ATTENTION.get(f, places),
        "mid_attention": "full" if attention else "none",
    }
    return KLConfig.parse(sizes) if codes is None else VQConfig.parse({**sizes, "codes": codes})


def _recipe(name: str) -> FirstStageRecipe:
    row = _ROWS[name]
    vq = row.codes is not None
    return FirstStageRecipe(
        name=name,
        data=Preprocess(size=384, crop_size=256, crop="random", flip=True),
        first_stage=autoencoder(row.f, row.codes, row.channels, row.attention),
        objective=FirstStageObjectiveConfig(
            reduction="mean" if vq else "sum",
            perceptual=LPIPSConfig(),
            regulariser_weight=1.0 if vq else 1e-6,
            discriminator=DiscriminatorConfig(layers=row.layers),
            adversarial_weight=row.weight,
            discriminator_start=(row.start + 0.5) / row.steps,  # the half: back to that step when it is rounded down
            discriminator_warmup=0.0,  # the authors' trains from its start on, not before
        ),
        # their learning rate is 4.5e-6 times the batch, on one process; neither clipping nor an average
        train=TrainConfig(
            steps=row.steps, batch=row.batch, optimiser="adam", lr=4.5e-6 * row.batch, betas=(0.5, 0.9), clip=None, ema=0.0
        ),
    )  # fmt: skip


def _named(name: str) -> Callable[[], FirstStageRecipe]:
    row = _ROWS[name]

    def recipe() -> FirstStageRecipe:
        return _recipe(name)

    kind = "KL" if row.codes is None else f"VQ, {row.codes} codes"
    source = "its training as its released sibling's" if name in _UNRELEASED else "with its released YAML"
    where = ", no attention" if not row.attention else ""
    recipe.__name__ = name.replace("-", "_")
    recipe.__doc__ = f"Table 8: {kind}, f = {row.f}, {row.channels} channels{where}; {source}."
    return recipe


FIRST_STAGES: dict[str, Callable[[], FirstStageRecipe]] = {name: _named(name) for name in _ROWS}
