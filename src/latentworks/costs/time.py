"""How long a recipe's run takes: steps of a narrow twin are measured here through the real training loop, and scaled by operations."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from latentworks.conditioners import (
    ConditionerConfig,
    FeaturesConfig,
    FrozenTextConfig,
    LabelConfig,
    LayoutConfig,
    TextConditioner,
    TextConfig,
)
from latentworks.costs.count import training_operations
from latentworks.costs.rehearsal import Rehearsal
from latentworks.first_stage import FirstStage, IdentityConfig
from latentworks.model import LatentDiffusion
from latentworks.nn.perceptual import LPIPSConfig, NoPerceptualConfig
from latentworks.recipe import ClassifierRecipe, FirstStageRecipe, Model, Recipe, build_model, build_objective
from latentworks.train import make_accelerator, train
from latentworks.types import Batch

__all__ = ["A100_PEAK", "A100_SPEED", "STEPS", "V100_PER_A100", "Constant", "Twin", "run_seconds", "seconds_of_steps", "twin", "v100_days"]

A100_PEAK, A100_SPEED = 156e12, 30e12
"""Operations a second of one A100: its TF32 peak, and what is assumed of it. The diffusion models of Table 18 then cost 0.65 to 1.23 times
what the table says; its two first stages 0.40 and 0.28 times, whose batch over all processes is not published."""

V100_PER_A100 = 2.2  # the paper's rule, Table 18
STEPS, WARM_UP = 20, 4
BUDGET = 6e10  # operations of a twin's step, a second or so on two cores


class Twin(NamedTuple):
    """A recipe of the same shape with ``divisor`` times fewer channels, small enough to run here, and the operations of one step of it."""

    recipe: Recipe
    divisor: int
    operations: int


class Constant:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.given = batch

    def indices_for(self, step: int, batch: int) -> list[int]:
        return list(range(batch))

    def batch(self, indices: list[int], step: int) -> Batch:
        return self.given


def twin(recipe: Recipe) -> Twin:
    """The widest one whose step stays in `BUDGET`, with the recipe's own width and batch if these do.

    Where channels or heads do not divide, it is the next narrower one. Raises: ValueError as `count`.
    """
    with torch.device("meta"):
        latent = Rehearsal(recipe).latent
    for divisor in (1, 2, 4, 8, 16):
        try:
            narrow = _narrow(recipe, divisor, latent)
        except ValueError:
            if divisor == 1:  # not the narrowing is at fault
                raise
            continue
        divided, operations = divisor, training_operations(narrow)
        if operations <= BUDGET:
            break
    batch = max(1, min(recipe.train.batch, int(BUDGET / operations)))
    training = recipe.train.replace(batch=batch, accumulate=1, steps=STEPS, warmup=0)
    return Twin(narrow.replace(train=training.model_dump()), divided, operations * batch)


def seconds_of_steps(small: Twin) -> Iterator[float]:
    """Seconds of each of `STEPS` steps, on random images or latents."""
    recipe = small.recipe
    accelerator = make_accelerator(recipe.train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe)
        objective, batch = build_objective(recipe, model), _noise(recipe, model)
    steps = train(objective, Constant(batch), recipe.train, accelerator=accelerator)
    began = time.perf_counter()
    for stepped in steps:
        float(next(iter(stepped.log.values())))  # waits for a GPU
        yield time.perf_counter() - began
        began = time.perf_counter()


def run_seconds(recipe: Recipe, small: Twin, measured: Sequence[float]) -> float:
    """Of all the recipe's steps here, in one process: the twin's median step, the first few apart, times the ratio of operations."""
    config = recipe.train
    operations = config.steps * config.batch * config.accumulate * training_operations(recipe)
    return statistics.median(measured[WARM_UP:]) * operations / small.operations


def v100_days(recipe: Recipe) -> float:
    """The paper's unit: days on an A100 of `A100_SPEED`, times `V100_PER_A100`.

    Images are encoded at every step, as the authors' loop has no latent cache.
    """
    config = recipe.train
    operations = config.steps * config.batch * config.accumulate * training_operations(recipe, cached=False)
    return operations / A100_SPEED / 86_400 * V100_PER_A100


def _narrow(recipe: Recipe, divisor: int, latent: tuple[int, int, int]) -> Recipe:
    """Raises: ValueError where it cannot be so narrow."""
    if isinstance(recipe, FirstStageRecipe):
        objective, net = recipe.objective, recipe.first_stage
        if isinstance(net, IdentityConfig):
            raise ValueError("first_stage.kind: an identity has nothing to train: use kl or vq")
        judge = objective.discriminator.replace(channels=max(8, objective.discriminator.channels // divisor))
        # from the first step on, as it is there for most of a run; LPIPS's weights need not be on this machine, and its share is small
        values = {"discriminator": judge.model_dump(), "discriminator_start": 0.0, "discriminator_warmup": 0.0, "quantise_from": 0.0}
        if isinstance(objective.perceptual, LPIPSConfig):
            values["perceptual"] = NoPerceptualConfig().model_dump()
        narrow = net.replace(channels=_divided(net.channels, divisor))
        return recipe.replace(first_stage=narrow.model_dump(), objective=objective.replace(**values).model_dump())
    unet = recipe.classifier.unet if isinstance(recipe, ClassifierRecipe) else recipe.unet
    sizes = {"channels": _divided(unet.channels, divisor), "head_channels": unet.head_channels and _divided(unet.head_channels, divisor)}
    net_of_latents = unet.replace(**sizes).model_dump()
    latents = {"data": {"size": latent[1]}, "first_stage": IdentityConfig(in_channels=latent[0]).model_dump()}  # which come ready
    if isinstance(recipe, ClassifierRecipe):
        return recipe.replace(**latents, classifier=recipe.classifier.replace(unet=net_of_latents).model_dump())
    conditioners = [config.model_dump() for config in (_narrow_condition(config, divisor) for config in recipe.conditioners) if config]
    return recipe.replace(**latents, unet=net_of_latents, conditioners=conditioners)


def _narrow_condition(config: ConditionerConfig, divisor: int) -> ConditionerConfig | None:
    """Text and classes as they are, but narrow; another context becomes the one token of a class, an image is left out."""
    match config:
        case TextConfig(width=width, head_channels=head):
            return config.replace(width=_divided(width, divisor), head_channels=_divided(head, divisor))
        case LabelConfig(width=width):
            return config.replace(width=_divided(width, divisor))
        case FrozenTextConfig() | LayoutConfig() | FeaturesConfig():
            return LabelConfig(classes=1, width=64)
    return None


def _divided(value: int, divisor: int) -> int:
    if value % divisor:
        raise ValueError(f"{value} channels cannot be divided by {divisor}")
    return value // divisor


def _noise(recipe: Recipe, model: Model) -> Batch:
    """Images or latents of noise, with any condition."""
    n, side = recipe.train.batch, recipe.data.out_size
    if isinstance(model, FirstStage):
        return {"index": torch.arange(n), "image": torch.rand(n, model.in_channels, side, side) * 2 - 1}
    batch: Batch = {"index": torch.arange(n), "latent": torch.randn(n, model.first_stage.channels, side, side)}
    batch["label"] = torch.zeros(n, dtype=torch.long)
    for conditioner in model.conditioners if isinstance(model, LatentDiffusion) else ():
        if isinstance(conditioner, TextConditioner):
            batch["tokens"] = torch.ones(n, conditioner.config.length, dtype=torch.long)
    return batch
