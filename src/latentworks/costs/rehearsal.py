"""A recipe's work gone through without computing: its networks, made of meta or fake tensors, and each of their passes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from latentworks.checkpoints.clip import CLIP_L, clip_assets
from latentworks.conditioners import FrozenTextConditioner, FrozenTextConfig, LabelConditioner, LayoutConditioner, TextConditioner
from latentworks.first_stage import FirstStage, KLAutoencoder, VQAutoencoder
from latentworks.nn.discriminator import Discriminator
from latentworks.nn.efficientnet import EfficientNetLite
from latentworks.nn.perceptual import EfficientNetPerceptualConfig, LPIPSConfig
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.recipe import Assets, DiffusionRecipe, FirstStageRecipe, Recipe, build_model
from latentworks.types import Cond, Gives

__all__ = ["Rehearsal", "resized"]

_CLIP = "openai/clip-vit-large-patch14"
_VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # convolutions of VGG16; 0: a pooling


def resized(recipe: Recipe, size: int | None) -> Recipe:
    """The recipe for images of so many pixels a side; as it is for None."""
    return recipe if size is None else recipe.replace(data=recipe.data.replace(size=size, crop_size=None).model_dump())


class Rehearsal:
    """Build and use it under ``torch.device("meta")`` or a FakeTensorMode; all images are zeros.

    Attributes: ``model``; its ``first_stage``; ``latent`` (channels, height, width); ``judges``: a first stage's discriminator and the
    network of its perceptual loss. ``assets``: a model folder's, as `read_assets` gives them.
    Raises: ValueError for a recipe that cannot be built, or a size its networks do not divide.
    """

    def __init__(self, recipe: Recipe, assets: Assets | None = None) -> None:
        self.recipe = recipe
        model = build_model(recipe, assets or _assets(recipe))
        self.model = model
        first_stage = model if isinstance(model, FirstStage) else model.first_stage
        if isinstance(first_stage, VQAutoencoder):
            first_stage.continuous = True  # the search for codes looks at values; it is a thousandth of the work
        self.first_stage = first_stage
        first_stage.check_size(recipe.data.out_size, recipe.data.out_size)
        side = recipe.data.out_size // first_stage.factor
        self.latent = (first_stage.channels, side, side)
        self.judges = _judges(recipe) if isinstance(recipe, FirstStageRecipe) else nn.ModuleDict()

    def trained(self) -> list[nn.Parameter]:
        """The weights that have an optimiser."""
        return [p for p in [*self.model.parameters(), *self.judges.parameters()] if p.requires_grad]

    def denoise(self, n: int) -> Tensor:
        """The network's output for ``n`` latents (a classifier's: its logits). Raises: ValueError for a size it cannot halve."""
        assert not isinstance(self.model, FirstStage)
        if isinstance(self.model, NoisyClassifier):
            return self.model.logits(torch.zeros(n, *self.latent), torch.zeros(n, dtype=torch.long))
        cond = [_condition(conditioner, n, self.latent) for conditioner in self.model.conditioners]
        steps = torch.zeros(n, dtype=torch.long)
        out: Tensor = self.model.unet(torch.zeros(n, *self.latent), steps, Cond.join(cond) if cond else Cond())
        return out

    def encode(self, n: int) -> Tensor:
        """``n`` images to what a latent cache holds."""
        return self.first_stage.encode_raw(self._images(n))

    def decode(self, n: int) -> Tensor:
        """``n`` latents to images, without their statistics, which nobody knows yet."""
        z = torch.zeros(n, *self.latent)
        if isinstance(self.first_stage, KLAutoencoder | VQAutoencoder):
            z = self.first_stage.decoder(self.first_stage.post_quant_conv(z))
        return z

    def train(self, n: int, precision: AbstractContextManager[object] | None = None) -> None:
        """A training step's passes on ``n`` images, forwards (within ``precision``) and backwards; gradients are left behind."""
        with torch.enable_grad():
            if not isinstance(self.model, FirstStage):
                with precision or nullcontext():
                    out = self.denoise(n)
                out.float().square().mean().backward()  # type: ignore[no-untyped-call]
            else:
                self._train_first_stage(n, precision or nullcontext())

    def _train_first_stage(self, n: int, precision: AbstractContextManager[object]) -> None:
        x = self._images(n)
        with precision:
            made = self.first_stage(x)
            image = made.image.float()
            loss = (image - x).abs().sum() + made.regulariser
            if "discriminator" in self.judges:
                self.judges["discriminator"].requires_grad_(False)
                loss = loss - self.judges["discriminator"](image).float().mean()
                self.judges["discriminator"].requires_grad_(True)
        if "perceptual" in self.judges:  # in float32 whatever the precision
            loss = loss + (self.judges["perceptual"](image) - self.judges["perceptual"](x)).square().sum()
        loss.backward()
        if "discriminator" in self.judges:
            with precision:
                logits = self.judges["discriminator"](x), self.judges["discriminator"](image.detach())
            (logits[1] - logits[0]).float().mean().backward()

    def _images(self, n: int) -> Tensor:
        return torch.zeros(n, self.first_stage.in_channels, self.recipe.data.out_size, self.recipe.data.out_size)


def _assets(recipe: Recipe) -> Assets:
    """Stable Diffusion's text encoder is known without a hub."""
    conditioners = recipe.conditioners if isinstance(recipe, DiffusionRecipe) else ()
    known = {i for i, config in enumerate(conditioners) if isinstance(config, FrozenTextConfig) and config.encoder == _CLIP}
    return {i: clip_assets(CLIP_L, None) for i in known}


def _condition(conditioner: nn.Module, n: int, latent: tuple[int, int, int]) -> Cond:
    """What a conditioner gives, through its trained part; it is not called itself, as it looks at values."""
    match conditioner:
        case LabelConditioner():
            vectors = conditioner.embedding(torch.zeros(n, dtype=torch.long))
            return Cond(context=vectors[:, None]) if conditioner.config.route == "context" else Cond(vector=vectors)
        case TextConditioner() | LayoutConditioner():
            transformer, length = conditioner.transformer, conditioner.config.length
            x = transformer.tokens(torch.zeros(n, length, dtype=torch.long)) + transformer.positions.weight[:length]
            for layer in transformer.layers:
                x = layer(x)
            x, summary = transformer.norm(x), getattr(conditioner, "summary", None)
            return Cond(context=x, vector=None if summary is None else summary(x.mean(dim=1)))
        case FrozenTextConditioner():  # its encoder's outputs are cached
            width = int(conditioner.encoder.config.hidden_size)  # type: ignore[arg-type, union-attr]
            return Cond(context=conditioner.projection(torch.zeros(n, conditioner.config.length, width)))
    gives = conditioner.gives
    assert isinstance(gives, Gives)
    return Cond(
        concat=torch.zeros(n, gives.concat, *latent[1:]) if gives.concat else None,
        context=torch.zeros(n, 1, gives.context) if gives.context else None,
    )


def _judges(recipe: FirstStageRecipe) -> nn.ModuleDict:
    """Networks of the same work as the loss's, without their weights, which need not be here."""
    judges, objective = nn.ModuleDict(), recipe.objective
    if objective.perceptual_weight:
        match objective.perceptual:
            case EfficientNetPerceptualConfig(stages=stages):
                net = EfficientNetLite("lite1")
                for module in list(net.modules()):  # the loss has them folded into the convolutions
                    for name in [name for name, child in module.named_children() if isinstance(child, nn.BatchNorm2d)]:
                        setattr(module, name, nn.Identity())
                judges["perceptual"] = nn.Sequential(net._conv_stem, *net._blocks[: net.ends[stages - 1]])
            case LPIPSConfig():
                judges["perceptual"] = _vgg()
    judges.requires_grad_(False)
    if objective.adversarial_weight:
        judges["discriminator"] = Discriminator(objective.discriminator)
    return judges


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    now = 3
    for width in _VGG:
        layers += [nn.Conv2d(now, width, 3, padding=1), nn.ReLU(inplace=True)] if width else [nn.MaxPool2d(2)]
        now = width or now
    return nn.Sequential(*layers)
