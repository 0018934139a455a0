"""The three released files that were trained with one attention head, whatever their YAML says."""

from collections.abc import Sequence

from latentworks.conditioners import ConditionerConfig, LabelConfig, LayoutConfig, TextConfig
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig
from latentworks.unet import UNetConfig

__all__ = ["released_with_one_head"]

_VQ_F4 = VQConfig(channels=128, multipliers=(1, 2, 4), blocks=2, latent_channels=3, codes=8192)
_VQ_F8 = VQConfig(channels=128, multipliers=(1, 2, 2, 4), blocks=2, latent_channels=4, codes=16384, attention=(8,))

_ONE_HEAD: dict[str, tuple[UNetConfig, VQConfig, ConditionerConfig]] = {
    "cin256": (
        UNetConfig(channels=256, multipliers=(1, 2, 4), attention=(4, 2, 1)),
        _VQ_F8,
        LabelConfig(classes=1000, width=512, null=False),
    ),
    "text2img256": (
        UNetConfig(channels=192, multipliers=(1, 2, 3, 5), attention=(8, 4, 2)),
        _VQ_F4,
        TextConfig(width=640, layers=32, vocabulary=30522, length=77),
    ),
    "layout2img-openimages256": (
        UNetConfig(channels=128, multipliers=(1, 2, 3, 4), attention=(8, 4, 2), depth=3),
        _VQ_F4,
        LayoutConfig(width=512, layers=16, vocabulary=8192, length=92, classes=1),
    ),
}
"""Before CompVis/latent-diffusion 71ebe40 (April 2022) a SpatialTransformer had one head where the YAML says ``num_head_channels: 32``, and
weights do not show it. A model counts as one of these only if every size of all three parts is the same."""


def released_with_one_head(
    unet: UNetConfig, first_stage: KLConfig | VQConfig | IdentityConfig, conditioners: Sequence[ConditionerConfig]
) -> str | None:
    """The name of the one of the three that has these sizes, if any."""
    if len(conditioners) != 1:
        return None
    for name, parts in _ONE_HEAD.items():
        if all(_sizes(part) == _sizes(given) for part, given in zip(parts, (unet, first_stage, conditioners[0]), strict=True)):
            return name
    return None


def _sizes(config: UNetConfig | KLConfig | VQConfig | IdentityConfig | ConditionerConfig) -> dict[str, object]:
    """What weights show, and what kind it is."""
    invisible = ("heads", "head_channels", "decoder_heads", "dropout", "legacy", "names", "attributes", "embed_channels")
    hidden = (*invisible, "classes") if isinstance(config, LayoutConfig) else invisible
    shown = {key: value for key, value in config.model_dump().items() if key not in hidden}
    return shown | {key: sorted(shown[key]) for key in ("attention",) if key in shown}
