"""Configs become objects here and nowhere else: a recipe is everything a run is made of, as data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentworks.conditioners import Conditioner, ConditionerConfig, build_conditioner
from latentworks.config import Config, nearest, read_mapping
from latentworks.data.transforms import Preprocess
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import FirstStageConfig, build_first_stage
from latentworks.first_stage.base import FirstStage
from latentworks.model import LatentDiffusion
from latentworks.nn.discriminator import Discriminator
from latentworks.nn.perceptual import build_perceptual
from latentworks.noisy_classifier import ClassifierNet, NoisyClassifier, NoisyClassifierConfig
from latentworks.objectives.alignment import AlignmentObjective, AlignmentObjectiveConfig
from latentworks.objectives.base import Objective
from latentworks.objectives.classifier import ClassifierObjective
from latentworks.objectives.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from latentworks.objectives.first_stage import FirstStageObjective, FirstStageObjectiveConfig
from latentworks.train import TrainConfig
from latentworks.unet import UNet, UNetConfig

__all__ = [
    "NOUNS",
    "Assets",
    "ClassifierRecipe",
    "DiffusionRecipe",
    "FirstStageRecipe",
    "Intervals",
    "Model",
    "Recipe",
    "SamplingDefaults",
    "build_classifier",
    "build_diffusion",
    "build_model",
    "build_objective",
    "parse_recipe",
    "read_recipe",
]

Assets = Mapping[int, Mapping[str, str]]
"""Conditioner index -> file name -> text."""


class SamplingDefaults(Config):
    """What `lw sample` uses where the user says nothing; also what the sample grids of training use."""

    sampler: Literal["ddpm", "ddim", "plms", "dpmpp_2m", "unipc"] = "dpmpp_2m"
    steps: int = Field(20, ge=1)
    guidance: float = 3.0
    spacing: Literal["leading", "trailing"] = "trailing"


class Intervals(Config):
    """In steps: how often a run logs, saves its state, and evaluates (held-out figures, a grid, the best model kept).

    ``held_out``: at most so many held-out images are used for that.
    """

    log: int = Field(50, ge=1)
    checkpoint: int = Field(1000, ge=1)
    evaluate: int = Field(1000, ge=1)
    held_out: int = Field(128, ge=1)


class FirstStageRecipe(Config):
    """Train an autoencoder."""

    kind: Literal["first_stage"] = "first_stage"
    name: str
    data: Preprocess
    first_stage: FirstStageConfig
    objective: FirstStageObjectiveConfig
    train: TrainConfig
    intervals: Intervals = Intervals()

    @property
    def plain(self) -> Preprocess:
        """How images are prepared to be measured on: whole, whatever crops it trains on."""
        return self.data.whole()


class DiffusionRecipe(Config):
    """Train a diffusion model in a first stage's latent space. ``first_stage`` is filled in from the trained one."""

    kind: Literal["latent_diffusion"] = "latent_diffusion"
    name: str
    data: Preprocess
    variants: int = Field(1, ge=1, description="stored variants of flips and crops in the latent cache")
    first_stage: FirstStageConfig | None = None
    conditioners: tuple[ConditionerConfig, ...] = ()
    unet: UNetConfig
    process: ProcessConfig
    objective: Annotated[DiffusionObjectiveConfig | AlignmentObjectiveConfig, Field(discriminator="kind")] = DiffusionObjectiveConfig()
    train: TrainConfig
    intervals: Intervals = Intervals()
    sampling: SamplingDefaults = SamplingDefaults()

    @property
    def plain(self) -> Preprocess:
        """How images are prepared to be measured on: what it learns to draw, with nothing left to chance."""
        return self.data.whole().replace(crop_size=self.data.crop_size)

    @model_validator(mode="after")
    def _enough_steps(self) -> "DiffusionRecipe":
        if self.sampling.steps > self.process.T:
            raise ValueError(f"sampling.steps {self.sampling.steps} are more than the process has ({self.process.T}): use at most that")
        return self


class ClassifierRecipe(Config):
    """Train a classifier that guides a diffusion model; ``first_stage`` and ``process`` are filled in from that model.

    ``data`` and ``variants`` as in `DiffusionRecipe`.
    """

    kind: Literal["classifier"] = "classifier"
    name: str
    data: Preprocess
    variants: int = Field(1, ge=1)
    first_stage: FirstStageConfig | None = None
    process: ProcessConfig
    classifier: NoisyClassifierConfig
    train: TrainConfig
    intervals: Intervals = Intervals()

    @property
    def plain(self) -> Preprocess:
        """How images are prepared to be measured on: as `DiffusionRecipe.plain`."""
        return self.data.whole().replace(crop_size=self.data.crop_size)


Recipe = FirstStageRecipe | DiffusionRecipe | ClassifierRecipe
Model = FirstStage | LatentDiffusion | NoisyClassifier

NOUNS = {"first_stage": "first stage", "latent_diffusion": "latent diffusion model", "classifier": "classifier of noisy latents"}
"""What a recipe of each kind makes, for sentences."""


def parse_recipe(values: dict[str, Any]) -> Recipe:
    """Validate a mapping. Raises: ValueError in one line naming the key, its value and the nearest valid one."""
    kinds: dict[str, type[Recipe]] = {
        "first_stage": FirstStageRecipe, "latent_diffusion": DiffusionRecipe, "classifier": ClassifierRecipe
    }  # fmt: skip
    kind = str(values.get("kind"))
    if kind not in kinds:
        raise ValueError(f"recipe kind {kind!r}: {nearest(kind, list(kinds))}")
    return kinds[kind].parse(values)


def read_recipe(path: Path) -> Recipe:
    """A recipe from JSON or YAML. Raises: ValueError naming the file."""
    values = read_mapping(path)
    try:
        return parse_recipe(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def build_diffusion(recipe: DiffusionRecipe, first_stage: FirstStage, conditioners: Sequence[Conditioner]) -> LatentDiffusion:
    """A latent diffusion model around a first stage and conditioners that exist already."""
    channels = first_stage.channels
    gives = LatentDiffusion.sum_gives(conditioners)
    return LatentDiffusion(first_stage, UNet(recipe.unet, channels, gives), Process(recipe.process), conditioners)


def build_classifier(recipe: ClassifierRecipe, first_stage: FirstStage) -> NoisyClassifier:
    """A classifier in the latent space of a first stage that exists already."""
    net = ClassifierNet(recipe.classifier, first_stage.channels, recipe.data.out_size // first_stage.factor)
    return NoisyClassifier(first_stage, net, Process(recipe.process))


def build_model(recipe: Recipe, assets: Assets | None = None) -> Model:
    """A model with random weights, to be filled from a model folder. Raises: ValueError."""
    if isinstance(recipe, FirstStageRecipe):
        return build_first_stage(recipe.first_stage)
    if recipe.first_stage is None:
        raise ValueError("first_stage: this recipe has none; a model of latents needs the first stage it was trained with")
    if isinstance(recipe, ClassifierRecipe):
        return build_classifier(recipe, build_first_stage(recipe.first_stage))
    conditioners = [build_conditioner(config, (assets or {}).get(i, {})) for i, config in enumerate(recipe.conditioners)]
    return build_diffusion(recipe, build_first_stage(recipe.first_stage), conditioners)


def build_objective(recipe: Recipe, model: Model) -> Objective:
    """The training objective of a recipe for its model."""
    if isinstance(recipe, DiffusionRecipe):
        assert isinstance(model, LatentDiffusion)
        if isinstance(recipe.objective, AlignmentObjectiveConfig):
            return AlignmentObjective(model, recipe.train.seed)
        return DiffusionObjective(recipe.objective, model, recipe.train.seed)
    if isinstance(recipe, ClassifierRecipe):
        assert isinstance(model, NoisyClassifier)
        return ClassifierObjective(model, recipe.train.seed)
    assert isinstance(model, FirstStage)
    config = recipe.objective
    discriminator = Discriminator(config.discriminator) if config.adversarial_weight else None
    perceptual = build_perceptual(config.perceptual) if config.perceptual_weight else None
    return FirstStageObjective(config, model, perceptual, discriminator, recipe.train.steps, recipe.train.seed)
