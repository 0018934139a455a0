"""From a request to images: condition, guidance, noise from per-image seeds, sampler, decode; one schema for command line and Python."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, field_validator
from torch import Tensor

from latentworks.checkpoints.native import load_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.conditioners import Conditioner, LabelConditioner
from latentworks.config import Config, nearest
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.engine import Engine
from latentworks.model import LatentDiffusion
from latentworks.random import randn_like_per_image
from latentworks.recipe import NOUNS, DiffusionRecipe, SamplingDefaults, read_recipe
from latentworks.types import Batch, Cond, Denoise, Step

__all__ = ["Drawn", "Pipeline", "SampleRequest", "load", "load_model", "picture", "settings", "settings_of", "settings_png"]


class SampleRequest(Config):
    """What to draw. None means "as the model was made for". Image i has seed ``seed + i`` and does not depend on ``batch``."""

    prompt: str | tuple[str, ...] | None = None
    negative_prompt: str | None = None
    label: str | int | None = None
    n: int = Field(1, ge=1, description="images for each prompt")
    seed: int = 0
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = None
    eta: float | None = Field(None, ge=0, le=1)
    size: tuple[int, int] | None = Field(None, description="height, width in pixels")
    batch: int = Field(16, ge=1, description="images drawn at once")

    @field_validator("sampler")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in SAMPLERS:
            raise ValueError(f"unknown sampler {value!r}: {nearest(value, list(SAMPLERS))}")
        return value

    def prompts(self) -> list[str | None]:
        """One prompt an image, in order."""
        given = [self.prompt] if self.prompt is None or isinstance(self.prompt, str) else list(self.prompt)
        return [prompt for prompt in given for _ in range(self.n)]


class Drawn(NamedTuple):
    """Finished images: pixels in the depth of the training data, the request of each one, and how many of all are done."""

    pixels: Shaped[np.ndarray, "b h w c"]
    requests: list[SampleRequest]
    done: int
    total: int


class Pipeline:
    """A loaded model ready to draw ``size`` x ``size`` pixels. Stateless between calls, so one may serve many threads."""

    def __init__(
        self, model: LatentDiffusion, defaults: SamplingDefaults, size: int, engine: Engine | None = None, depth: str = "uint8"
    ) -> None:
        self.model, self.defaults, self.size, self.depth = model, defaults, size, np.dtype(depth)
        self.engine = engine or Engine()
        self.device = self.engine.resolve()
        self.model.to(self.device).eval()

    def __call__(self, prompt: str | Sequence[str] | None = None, **settings: Any) -> list[Image.Image]:
        """Images for a prompt (or prompts), settings as in `SampleRequest`; each carries its settings in ``.info``.

        Raises: ValueError for a bad setting, or where Pillow has no mode for the model's channels and depth (then use `draw`).
        """
        text = prompt if prompt is None or isinstance(prompt, str) else tuple(prompt)
        request = SampleRequest.parse({"prompt": text, **settings})
        finished = (event for event in self.draw(request) if isinstance(event, Drawn))
        return [picture(pixels, one) for drawn in finished for pixels, one in zip(drawn.pixels, drawn.requests, strict=True)]

    def draw(self, request: SampleRequest) -> Iterator[Step | Drawn]:
        """Every step of every ``request.batch`` images, then these images."""
        request = self.resolve(request)
        prompts = request.prompts()
        for start in range(0, len(prompts), request.batch):
            stop = min(start + request.batch, len(prompts))
            for step in self.stream(request, start, stop):
                last = step
                yield step
            requests = [request.replace(prompt=prompts[i], n=1, seed=request.seed + i) for i in range(start, stop)]
            yield Drawn(self.decode(last.x), requests, stop, len(prompts))

    @torch.no_grad()
    def stream(self, request: SampleRequest, start: int = 0, stop: int | None = None) -> Iterator[Step]:
        """Steps of images start..stop, in latent space; stop iterating to cancel. Raises: ValueError on what the model cannot do."""
        request = self.resolve(request)
        prompts = request.prompts()[start:stop]
        assert request.size is not None
        assert request.steps is not None
        assert request.sampler is not None
        first_stage, process = self.model.first_stage, self.model.process
        latent = (len(prompts), first_stage.channels, *(side // first_stage.factor for side in request.size))
        seeds = [request.seed + start + i for i in range(len(prompts))]
        timesteps = process.timesteps(request.steps, self.defaults.spacing)
        options = {} if request.eta is None else {"eta": request.eta}
        denoise = self._denoise(request, prompts)
        x = randn_like_per_image("start", seeds)(torch.empty(latent, device=self.device))
        yield from SAMPLERS[request.sampler](denoise, x, process, timesteps, randn_like_per_image("ancestral", seeds), **options)

    def resolve(self, request: SampleRequest) -> SampleRequest:
        """The request with the model's defaults filled in. Raises: ValueError for what this model cannot do, before anything is drawn."""
        takes = self._fields()
        if beyond := sorted(takes.keys() - {"text", "label"}):
            raise ValueError(f"{beyond[0]}: this model needs it, and no request can carry it yet: use model.condition in Python")
        for name, field in (("prompt", "text"), ("negative_prompt", "text"), ("label", "label")):
            if getattr(request, name) is not None and field not in takes:
                what = {"text": "text", "label": "class"}[field]
                raise ValueError(f"{name}: this model takes no {what}; it takes {', '.join(sorted(takes)) or 'no condition'}")
        sampler, guidance = request.sampler or self.defaults.sampler, request.guidance
        if request.eta is not None and sampler != "ddim":
            raise ValueError(f"eta: {request.eta} belongs to the sampler ddim (ddpm is ddim with eta 1), not to {sampler}: leave it out")
        if guidance is None:
            guidance = self.defaults.guidance if all(takes.values()) and takes else 1.0
        if guidance != 1 and not takes:
            raise ValueError(f"guidance: {guidance} needs a condition to guide towards, and this model takes none: leave it out")
        if guidance == 1 and request.negative_prompt is not None:
            raise ValueError("negative_prompt: without guidance it has no effect: give a guidance above 1")
        request = request.replace(
            sampler=sampler, steps=request.steps or self.defaults.steps, guidance=guidance, size=request.size or (self.size, self.size)
        )
        assert request.steps is not None
        self.model.process.timesteps(request.steps, self.defaults.spacing)
        multiple = self.model.first_stage.factor * self.model.unet.config.factors[-1]
        for name, side in zip(("height", "width"), request.size or (), strict=True):
            if side < 1 or side % multiple:
                raise ValueError(f"size: {name} {side} is not possible with this model: use a multiple of {multiple}")
        return request

    def _fields(self) -> dict[str, bool]:
        """Which conditions the model takes, and of each whether it also knows "no condition", which guidance needs."""
        return {
            conditioner.field: not isinstance(conditioner, LabelConditioner) or conditioner.config.null
            for conditioner in self.model.conditioners
            if isinstance(conditioner, Conditioner)
        }

    def _denoise(self, request: SampleRequest, prompts: list[str | None]) -> Denoise:
        """The model closed over condition and guidance; without a prompt or label it is the model's own "no condition"."""
        batch: Batch = {"text": [prompt or "" for prompt in prompts], "index": torch.arange(len(prompts))}
        everywhere = torch.ones(len(prompts), dtype=torch.bool, device=self.device)
        for conditioner in self.model.conditioners:
            if isinstance(conditioner, LabelConditioner):
                index = 0 if request.label is None else conditioner.index(request.label)
                batch["label"] = torch.full((len(prompts),), index, device=self.device)
                batch = conditioner.drop(batch, everywhere) if request.label is None else batch
        cond = self.model.condition(batch)

        def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            with self.engine.autocast():
                return self.model.predict(x_t, t, cond).float()

        assert request.guidance is not None
        if request.guidance == 1:
            return lambda x_t, t: predict(x_t, t, cond)
        none = batch
        for conditioner in self.model.conditioners:
            assert isinstance(conditioner, Conditioner)
            none = conditioner.drop(none, everywhere)
        if request.negative_prompt is not None:
            none["text"] = [request.negative_prompt] * len(prompts)
        return classifier_free(predict, cond, self.model.condition(none), request.guidance)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b z h w"]) -> Shaped[np.ndarray, "b h w c"]:
        """Pixels of latents, in the depth of the training data."""
        return from_tensor(self.model.first_stage.decode(z), self.depth)


def load_model(name: Path | str) -> LatentDiffusion:
    """A latent diffusion model by bundled name, model folder or run folder. Raises: ValueError."""
    model, recipe = load_folder(resolve_model(name))
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"{name} is a {NOUNS[recipe.kind]} ({recipe.name}): it cannot be sampled; name a latent diffusion model")
    return model


def load(name: Path | str, engine: Engine | None = None) -> Pipeline:
    """A model by bundled name, model folder or run folder, ready to draw. Raises: ValueError."""
    model, recipe = load_model(name), read_recipe(resolve_model(name) / "recipe.json")
    assert isinstance(recipe, DiffusionRecipe)
    return Pipeline(model, recipe.sampling, recipe.data.out_size, engine, recipe.data.depth)


def picture(pixels: Shaped[np.ndarray, "h w c"], request: SampleRequest) -> Image.Image:
    """Pixels as Pillow's image with its settings in ``.info``. Raises: ValueError where Pillow has no mode for them."""
    channels, depth = pixels.shape[2], pixels.dtype.name
    if not (depth == "uint8" and channels in (1, 3, 4)) and not (depth == "uint16" and channels == 1):
        raise ValueError(f"{channels} channels of {depth} are no picture Pillow can hold: use draw(), or lw sample, which writes TIFF")
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.info.update(settings(request))
    return image


def settings(request: SampleRequest) -> dict[str, str]:
    """What is written into an image of a resolved request: ours as JSON in plain ASCII, and the text other tools read."""
    return {
        "latentworks": json.dumps(request.model_dump(mode="json", exclude_none=True, exclude={"batch"})),
        "parameters": _parameters(request),
    }


def _parameters(request: SampleRequest) -> str:
    """The text other tools read from PNGs (AUTOMATIC1111's ``parameters``)."""
    size = request.size or (0, 0)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return (
        f"{request.prompt or ''}{negative}\nSteps: {request.steps}, Sampler: {request.sampler}, CFG scale: {request.guidance}, "
        f"Seed: {request.seed}, Size: {size[1]}x{size[0]}"
    )


def settings_png(image: Image.Image) -> PngInfo:
    """The PNG text chunks for an image of `Pipeline`."""
    info = PngInfo()
    for key in ("parameters", "latentworks"):
        if key in image.info:
            info.add_itxt(key, image.info[key])
    return info


def settings_of(image: Image.Image) -> SampleRequest:
    """The request an image was drawn from. Raises: ValueError if it carries none."""
    if "latentworks" not in image.info:
        raise ValueError("this image carries no settings of ours (PNG text 'latentworks')")
    return SampleRequest.parse(json.loads(image.info["latentworks"]))
