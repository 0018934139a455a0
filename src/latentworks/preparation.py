"""From a recipe and a folder to everything a run needs: what the recipe leaves open is taken from the data, and nothing is written yet."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from latentworks.checkpoints.native import load_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.checkpoints.start import start_from
from latentworks.completion import complete, extras_of, needs_of
from latentworks.conditioners import FrozenTextConditioner, LabelConfig, TextConfig
from latentworks.data.dataset import Extras, ImageDataset
from latentworks.data.latents import LatentDataset, weights_digest
from latentworks.data.sources import FolderSource
from latentworks.data.text_features import TextFeatures
from latentworks.data.transforms import Preprocess
from latentworks.first_stage import FirstStage, IdentityConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.objectives.alignment import AlignmentObjectiveConfig
from latentworks.objectives.base import Objective
from latentworks.recipe import (
    ClassifierRecipe,
    DiffusionRecipe,
    FirstStageRecipe,
    Model,
    Recipe,
    build_classifier,
    build_diffusion,
    build_model,
    build_objective,
    read_recipe,
)
from latentworks.unet import UNetConfig

__all__ = ["Prepared", "RunRequest", "load_first_stage", "prepare"]


@dataclass(frozen=True)
class RunRequest:
    """One call of `lw train`. ``out``: the run folder; ``seconds``: stop after so many."""

    recipe: Recipe
    data: Path
    out: Path
    first_stage: Path | str | None = None
    from_model: Path | str | None = None
    seconds: float | None = None

    @property
    def cache(self) -> Path:
        """Where latents are kept: beside the run folders, so that runs on one first stage share it."""
        return self.out.parent / "cache"


@dataclass(frozen=True)
class Prepared:
    """``recipe`` is complete; ``held_out`` is None where the data is too small to hold any out; ``notes`` are for the user to read."""

    recipe: Recipe
    model: Model
    objective: Objective
    images: ImageDataset
    latents: LatentDataset | None
    held_out: ImageDataset | None
    notes: list[str] = field(default_factory=list)


def prepare(request: RunRequest) -> Prepared:
    """Raises: ValueError in one line for everything that cannot work, before anything is written."""
    recipe, notes = request.recipe, list[str]()
    source = FolderSource(request.data, split="train", channels=recipe.data.channels, needs=needs_of(recipe))
    recipe = recipe.replace(data=recipe.data.replace(channels=source.channels, depth=source.dtype.name).model_dump())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        if isinstance(recipe, FirstStageRecipe):
            recipe = _fit_first_stage(recipe, request, source.channels, notes)
            model: Model = build_model(recipe)
            assert isinstance(model, FirstStage)
            _check_side("data.crop_size", recipe.data.out_size, model.factor)
            _check_side("data.size", recipe.data.size, model.factor)  # it is measured on whole images
        elif isinstance(recipe, ClassifierRecipe):
            recipe, model = _classifier(recipe, request, source)
        else:
            recipe, model = _diffusion(recipe, request, source)
        objective = build_objective(recipe, model)
    if request.from_model is not None:
        notes += _start_from(model, request.from_model)
        if isinstance(recipe, FirstStageRecipe) and recipe.objective.decoder_only:  # statistics belong to the latents, which stay
            assert isinstance(model, FirstStage)
            known = load_first_stage(request.from_model)
            model.set_statistics(known.mean, known.std)
    extras = extras_of(recipe.conditioners) if isinstance(recipe, DiffusionRecipe) else Extras()
    images = ImageDataset(source, recipe.data, seed=recipe.train.seed, extras=extras)
    if extras.boxes and (crowded := sum(len(entry.boxes or ()) > extras.boxes for entry in source.entries)):
        notes.append(f"{crowded} images have more than {extras.boxes} boxes: of each the smallest are left out")
    latents = None
    if not isinstance(recipe, FirstStageRecipe):
        assert not isinstance(model, FirstStage)
        features = _features(model, source, request.cache) if isinstance(model, LatentDiffusion) else None
        latents = LatentDataset(model.first_stage, images, request.cache, recipe.variants, text_features=features)
    return Prepared(recipe, model, objective, images, latents, _held_out(request, recipe, extras, notes), notes)


def load_first_stage(name: Path | str) -> FirstStage:
    """A trained first stage, from its own folder or out of a model of latents. Raises: ValueError without latent statistics."""
    folder = resolve_model(name)
    model, _ = load_folder(folder)
    return _first_stage_of(model, folder)


def _first_stage_of(model: Model, folder: Path) -> FirstStage:
    first_stage = model if isinstance(model, FirstStage) else model.first_stage
    if not first_stage.normalised:
        raise ValueError(f"{folder} has no latent statistics: let its training end or stop by itself (lw train), which computes them")
    return first_stage


def _start_from(model: Model, name: Path | str) -> list[str]:
    """Fill in the weights to begin with; lines on what is not simply taken."""
    other, recipe = load_folder(resolve_model(name))
    notes = start_from(model, other, recipe)
    stages = {weights_digest(m.first_stage) for m in (model, other) if not isinstance(m, FirstStage)}
    if len(stages) > 1:
        notes.append(f"the first stage is not the one {name} was trained with: its latents have to be learned anew")
    return notes


def _fit_first_stage(recipe: FirstStageRecipe, request: RunRequest, channels: int, notes: list[str]) -> FirstStageRecipe:
    """The recipe for images of so many channels; the perceptual networks see 1 or 3."""
    if isinstance(recipe.first_stage, IdentityConfig):
        raise ValueError("first_stage.kind: an identity has nothing to train: use kl or vq, or give it to a latent recipe as it is")
    if recipe.objective.decoder_only and request.from_model is None:
        raise ValueError("--from: objective.decoder_only keeps an encoder that has learnt already: name the first stage it is of")
    objective = recipe.objective.replace(discriminator=recipe.objective.discriminator.replace(in_channels=channels).model_dump())
    if channels not in (1, 3) and objective.perceptual.kind != "none":
        objective = objective.replace(perceptual={"kind": "none"})
        notes.append(f"no perceptual loss: its network sees 1 or 3 channels, the images have {channels}")
    layers, side = recipe.objective.discriminator.layers, recipe.data.out_size
    if recipe.objective.adversarial_weight and side < 3 * 2**layers:
        raise ValueError(
            f"objective.discriminator.layers: {layers} halvings need {3 * 2**layers} pixels a side, the images have {side}: "
            "use fewer layers, a larger data.crop_size, or objective.adversarial_weight=0"
        )
    first_stage = recipe.first_stage.replace(in_channels=channels)
    return recipe.replace(first_stage=first_stage.model_dump(), objective=objective.model_dump())


def _diffusion(recipe: DiffusionRecipe, request: RunRequest, source: FolderSource) -> tuple[DiffusionRecipe, LatentDiffusion]:
    """The recipe completed by the first stage and the data's captions or classes, and a fresh model around the trained first stage."""
    _check_aligned(recipe, request.from_model)
    name = request.first_stage or request.from_model
    if name is not None:
        first_stage = load_first_stage(name)
    elif isinstance(recipe.first_stage, IdentityConfig):
        first_stage = build_first_stage(recipe.first_stage.replace(in_channels=source.channels))
    else:
        raise ValueError(f"--first-stage: {recipe.name} is trained in the latent space of a first stage: train one and name its run folder")
    _check_images(recipe.data, first_stage, recipe.unet, source, name)
    conditioners = [complete(config, i, source, first_stage, request.from_model) for i, config in enumerate(recipe.conditioners)]
    configs = [conditioner.config.model_dump() for conditioner in conditioners]  # type: ignore[operator,union-attr]
    recipe = recipe.replace(first_stage=first_stage.config.model_dump(), conditioners=configs)  # type: ignore[union-attr,operator]
    return recipe, build_diffusion(recipe, first_stage, conditioners)


def _check_aligned(recipe: DiffusionRecipe, from_model: Path | str | None) -> None:
    """Raises: ValueError where aligned text would have nothing to learn from, or there is none."""
    places = [i for i, config in enumerate(recipe.conditioners) if isinstance(config, TextConfig) and config.aligned]
    if isinstance(recipe.objective, AlignmentObjectiveConfig):
        if not places:
            raise ValueError("objective.kind: alignment teaches aligned text, and this recipe has none: set aligned and vector of its text")
        return
    its = read_recipe(resolve_model(from_model) / "recipe.json") if places and from_model is not None else None
    known = its.conditioners if isinstance(its, DiffusionRecipe) else ()
    for i in places:
        other = known[i] if i < len(known) else None
        if not (isinstance(other, TextConfig) and other.aligned):
            raise ValueError(
                f"--from: {from_model or 'nothing'} has no aligned text, and conditioners.{i} stays as it is while the net learns: "
                "train it first (objective={kind: alignment}) and begin from that run"
            )


def _classifier(recipe: ClassifierRecipe, request: RunRequest, source: FolderSource) -> tuple[ClassifierRecipe, NoisyClassifier]:
    """The recipe completed by the diffusion model that it guides and the folder's classes, and a fresh classifier."""
    name = request.first_stage or request.from_model
    if name is None:
        raise ValueError(f"--first-stage: {recipe.name} guides a diffusion model: train one and name its run folder")
    folder = resolve_model(name)
    guided, its = load_folder(folder)
    if isinstance(its, FirstStageRecipe) or its.first_stage is None:
        raise ValueError(f"--first-stage: {name} is a first stage alone, which knows no noise: name the diffusion model to be guided")
    first_stage = _first_stage_of(guided, folder)
    _check_images(recipe.data, first_stage, recipe.classifier.unet, source, name)
    if len(source.classes) < 2:
        raise ValueError(f"{request.data} has {len(source.classes) or 'no'} classes: give one sub-folder for each of two or more classes")
    for label in its.conditioners if isinstance(its, DiffusionRecipe) else ():
        if isinstance(label, LabelConfig) and label.names != source.classes:
            differ = sorted(set(label.names) ^ set(source.classes)) or ["their order"]
            raise ValueError(f"{request.data}: its classes are not those of {name} ({', '.join(differ[:5])}): name the sub-folders alike")
    config = recipe.classifier.replace(classes=len(source.classes), names=source.classes)
    completed = {"first_stage": its.first_stage, "process": its.process, "classifier": config}
    recipe = recipe.replace(**{key: value.model_dump() for key, value in completed.items()})
    return recipe, build_classifier(recipe, first_stage)


def _check_images(data: Preprocess, first_stage: FirstStage, unet: UNetConfig, source: FolderSource, name: Path | str | None) -> None:
    """Raises: ValueError for images that the networks cannot take."""
    if first_stage.in_channels != source.channels:
        raise ValueError(f"--first-stage: {name} was trained on images of {first_stage.in_channels} channels, these have {source.channels}")
    for side in (data.out_size, data.size):
        _check_side("data.size", side, first_stage.factor * unet.factors[-1])


def _check_side(field: str, side: int, multiple: int) -> None:
    """Raises: ValueError for an image that cannot be halved as often as the networks need it."""
    if side % multiple:
        near = " or ".join(str(n) for n in (side // multiple * multiple, (side // multiple + 1) * multiple) if n)
        raise ValueError(f"{field}: {side} is not divisible by {multiple}, the factor by which the networks reduce images: use {near}")


def _features(model: LatentDiffusion, source: FolderSource, cache: Path) -> TextFeatures | None:
    """A frozen text encoder's outputs are cached too."""
    frozen = [c for c in model.conditioners if isinstance(c, FrozenTextConditioner)]
    if len(frozen) != 1:  # a batch has one field for them
        return None
    captions = [text for entry in source.entries for text in entry.text]
    return TextFeatures(frozen[0].features, f"{weights_digest(frozen[0].encoder)} {frozen[0].config.length}", captions, cache)


def _held_out(request: RunRequest, recipe: Recipe, extras: Extras, notes: list[str]) -> ImageDataset | None:
    try:
        source = FolderSource(request.data, split="held_out", channels=recipe.data.channels, needs=needs_of(recipe))
    except ValueError as error:
        notes.append(f"nothing is held out, so there is no best model, only the last ({error})")
        return None
    return ImageDataset(source, recipe.plain, seed=recipe.train.seed, extras=extras)
