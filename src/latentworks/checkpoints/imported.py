"""Models that come from elsewhere: what was read, what to know of it, and a recipe of ours that describes it."""

from typing import NamedTuple, TypeVar

from latentworks.conditioners import FrozenTextConfig, LabelConfig, TextConfig
from latentworks.data.transforms import Preprocess
from latentworks.first_stage import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.objectives.first_stage import FirstStageObjectiveConfig
from latentworks.recipe import DiffusionRecipe, FirstStageRecipe, Recipe, SamplingDefaults
from latentworks.train import TrainConfig

__all__ = ["Imported", "as_latent_diffusion", "recipe_of"]

M = TypeVar("M", bound=FirstStage | LatentDiffusion)


class Imported(NamedTuple):
    """A model in evaluation mode, the pixels a side it was made for, and what a user should know: what was left out or taken otherwise."""

    model: FirstStage | LatentDiffusion
    size: int
    notes: tuple[str, ...] = ()


def as_latent_diffusion(imported: Imported, file: object) -> LatentDiffusion:
    """Its model. Raises: ValueError when it is a first stage."""
    if not isinstance(imported.model, LatentDiffusion):
        raise ValueError(f"{file} holds a first stage, not a latent diffusion model")
    return imported.model


def recipe_of(model: FirstStage | LatentDiffusion, name: str, size: int) -> Recipe:
    """A recipe that builds this model again; ``size``: pixels a side it draws. How it was trained is not known: those settings are ours.

    It samples as such models are used: 50 steps of DDIM on their clock, with guidance where the condition can be dropped.
    """
    if isinstance(model, FirstStage):
        data = Preprocess(size=size, channels=model.in_channels)
        config, train = model.config, TrainConfig()
        return FirstStageRecipe(name=name, data=data, first_stage=config, objective=FirstStageObjectiveConfig(), train=train)
    conditioners = tuple(conditioner.config for conditioner in model.conditioners)
    guided = [c for c in conditioners if isinstance(c, TextConfig | FrozenTextConfig) or (isinstance(c, LabelConfig) and c.null)]
    text = any(not isinstance(config, LabelConfig) for config in guided)
    guidance = 1.0 if not guided else 7.5 if text else 3.0
    return DiffusionRecipe(
        name=name,
        data=Preprocess(size=size, channels=model.first_stage.in_channels),
        first_stage=model.first_stage.config,
        conditioners=conditioners,
        unet=model.unet.config,
        process=model.process.config,
        train=TrainConfig(),
        sampling=SamplingDefaults(sampler="ddim", steps=min(50, model.process.T), guidance=guidance, spacing="leading"),
    )
