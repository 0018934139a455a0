"""From a request to images: condition, guidance, noise from per-image seeds, sampler, decode."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from latentworks.checkpoints.native import load_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.conditioners import Conditioner
from latentworks.conditions import Pictures, check_conditions, conditions_of, droppable, read_pictures
from latentworks.data.degrade import back_project
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.engine import Engine
from latentworks.model import LatentDiffusion
from latentworks.random import randn_like_per_image
from latentworks.recipe import DiffusionRecipe, SamplingDefaults, read_recipe
from latentworks.request import SampleRequest, settings
from latentworks.types import Batch, Cond, Denoise, Step

__all__ = ["Drawn", "Pipeline", "load", "load_model", "picture"]


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
        """Every step of every ``request.batch`` images, then these images. Raises: ValueError on what the model cannot do."""
        request, pictures = self._resolved(request)
        each = request.each()
        for start in range(0, len(each), request.batch):
            part = each[start : start + request.batch]
            for step in self._steps(part, pictures):
                last = step
                yield step
            yield Drawn(self._finished(last.x, request, pictures), part, start + len(part), len(each))

    def draw_batch(self, batch: Batch, request: SampleRequest) -> Iterator[Step | Drawn]:
        """Images for the conditions of a batch, as data has them; of the request count sampler, steps, guidance, eta and seed.

        Raises: ValueError on what the model cannot do.
        """
        count = len(batch["index"])
        request = self.filled(request.replace(n=count))
        for step in self._sampled(request.each(), self._denoise(batch, request), self._padded((self.size, self.size))):
            last = step
            yield step
        yield Drawn(self.decode(last.x)[:, : self.size, : self.size], request.each(), count, count)

    def stream(self, request: SampleRequest, start: int = 0, stop: int | None = None) -> Iterator[Step]:
        """Steps of images start..stop, in latent space; stop iterating to cancel. Raises: ValueError on what the model cannot do."""
        request, pictures = self._resolved(request)
        yield from self._steps(request.each()[start:stop], pictures)

    def resolve(self, request: SampleRequest) -> SampleRequest:
        """The request with the model's defaults filled in. Raises: ValueError for what this model cannot do, before anything is drawn."""
        return self._resolved(request)[0]

    def _resolved(self, request: SampleRequest) -> tuple[SampleRequest, Pictures]:
        check_conditions(self.model, request)
        pictures = read_pictures(self.model, request, (self.size, self.size), self.depth)
        return self.filled(request.replace(size=pictures.size)), pictures

    def filled(self, request: SampleRequest) -> SampleRequest:
        """The settings of sampling, as the model has them where the request says nothing; conditions are not looked at.

        Raises: ValueError for settings that are not possible.
        """
        size, sampler, guidance = request.size or (self.size, self.size), request.sampler or self.defaults.sampler, request.guidance
        if request.eta is not None and sampler != "ddim":
            raise ValueError(f"eta: {request.eta} belongs to the sampler ddim (ddpm is ddim with eta 1), not to {sampler}: leave it out")
        guided = any(droppable(conditioner) for conditioner in self._conditioners())
        if guidance is None:
            guidance = self.defaults.guidance if guided else 1.0
        if guidance != 1 and not guided:
            raise ValueError(f"guidance: {guidance} needs a condition to guide towards that the model can do without: leave it out")
        if guidance == 1 and request.negative_prompt is not None:
            raise ValueError("negative_prompt: without guidance it has no effect: give a guidance above 1")
        if min(size) < 1:
            raise ValueError(f"size: {size[1]} x {size[0]} has no pixels: give 1 or more")
        strength = 0.6 if request.strength is None and request.image is not None and request.mask is None else request.strength
        steps = request.steps or self.defaults.steps
        self.model.process.timesteps(steps, self.defaults.spacing)
        return request.replace(sampler=sampler, steps=steps, guidance=guidance, size=size, strength=strength)

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """The next size that the networks can halve as often as they do."""
        multiple = self.model.first_stage.factor * self.model.unet.config.factors[-1]
        height, width = (-(-side // multiple) * multiple for side in size)
        return height, width

    def _conditioners(self) -> list[Conditioner]:
        return [conditioner for conditioner in self.model.conditioners if isinstance(conditioner, Conditioner)]

    @torch.no_grad()
    def _steps(self, each: list[SampleRequest], pictures: Pictures) -> Iterator[Step]:
        """The steps of resolved requests that differ in prompt and noise only."""
        padded = self._padded(pictures.size)
        batch = conditions_of(self.model, each[0], pictures, padded, [one.prompt if isinstance(one.prompt, str) else None for one in each])
        z = None if each[0].strength is None else self.model.encode(batch["image"].to(self.device))
        yield from self._sampled(each, self._denoise(batch, each[0]), padded, z)

    @torch.no_grad()
    def _sampled(
        self, each: list[SampleRequest], denoise: Denoise, padded: tuple[int, int], z: Float[Tensor, "b z h w"] | None = None
    ) -> Iterator[Step]:
        """The sampler's steps from the requests' own noise, or from the noised latents ``z`` after 1 - strength of the steps."""
        request, process, first_stage = each[0], self.model.process, self.model.first_stage
        assert request.steps is not None
        assert request.sampler is not None
        timesteps = process.timesteps(request.steps, self.defaults.spacing)
        x = self._start((len(each), first_stage.channels, *(side // first_stage.factor for side in padded)), each)
        if z is not None:
            assert request.strength is not None
            timesteps = timesteps[-1 - max(1, round(request.strength * request.steps)) :]
            x = process.add_noise(z, x, torch.full((len(each),), timesteps[0], device=self.device))
        options = {} if request.eta is None else {"eta": request.eta}
        ancestral = randn_like_per_image("ancestral", [one.seed for one in each])
        yield from SAMPLERS[request.sampler](denoise, x, process, timesteps, ancestral, **options)

    def _start(self, shape: tuple[int, ...], each: list[SampleRequest]) -> Float[Tensor, "b z h w"]:
        """Each image's first noise; between two seeds on the arc that keeps its variance (slerp)."""
        empty = torch.empty(shape, device=self.device)
        x = randn_like_per_image("start", [one.seed for one in each])(empty)
        if each[0].to_seed is None:
            return x
        other = randn_like_per_image("start", [each[0].to_seed] * len(each))(empty)
        angle = torch.tensor([(one.position or 0.0) * math.pi / 2 for one in each], device=self.device).view(-1, 1, 1, 1)
        return angle.cos() * x + angle.sin() * other

    def _denoise(self, batch: Batch, request: SampleRequest) -> Denoise:
        """The model closed over a batch's condition and guidance."""
        cond = self.model.condition(batch)

        def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            with self.engine.autocast():
                return self.model.predict(x_t, t, cond).float()

        assert request.guidance is not None
        if request.guidance == 1:
            return lambda x_t, t: predict(x_t, t, cond)
        none, everywhere = batch, torch.ones(len(batch["index"]), dtype=torch.bool)
        for conditioner in self._conditioners():
            none = conditioner.drop(none, everywhere) if droppable(conditioner) else none
        if request.negative_prompt is not None:
            none = {**none, "text": [request.negative_prompt] * len(everywhere)}
        return classifier_free(predict, cond, self.model.condition(none), request.guidance)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b z h w"]) -> Shaped[np.ndarray, "b h w c"]:
        """Pixels of latents, in the depth of the training data."""
        return from_tensor(self.model.first_stage.decode(z), self.depth)

    def _finished(self, z: Float[Tensor, "b z h w"], request: SampleRequest, pictures: Pictures) -> Shaped[np.ndarray, "b h w c"]:
        """Pixels in the size asked for; outside a hole the given ones, byte for byte; enlarged ones moved onto what they came from."""
        pixels = self.decode(z)[:, : pictures.size[0], : pictures.size[1]]
        if pictures.low_res is not None and request.back_projection:
            factor = pictures.size[0] // pictures.low_res.shape[0]
            pixels = np.stack([back_project(image, pictures.low_res, factor, request.back_projection) for image in pixels])
        if pictures.hole is not None and pictures.image is not None:
            pixels = np.where(pictures.hole[..., None], pixels, pictures.image)
        return np.ascontiguousarray(pixels)


def load_model(name: Path | str) -> LatentDiffusion:
    """A latent diffusion model by bundled name, model folder or run folder. Raises: ValueError."""
    model, recipe = load_folder(resolve_model(name))
    if not isinstance(model, LatentDiffusion):
        raise ValueError(f"{name} is a first stage ({recipe.name}): it cannot be sampled; train a latent diffusion model on it")
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
