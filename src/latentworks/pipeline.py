"""From a request to images: condition, guidance, noise from per-image seeds, sampler, decode."""

import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from PIL import Image
from torch import Tensor

from latentworks.checkpoints.native import load_folder
from latentworks.checkpoints.resolve import keep_model, resolve_model
from latentworks.conditioners import LowResConditioner
from latentworks.conditions import Pictures, check_conditions, conditions_of, guide_of, known_of, read_pictures, shown
from latentworks.data.degrade import back_project
from latentworks.data.transforms import from_tensor
from latentworks.denoiser import denoiser
from latentworks.diffusion.guidance import descend, known_pixels
from latentworks.diffusion.samplers import SAMPLERS, repaint
from latentworks.engine import Engine, keep_memory
from latentworks.first_stage.autoencoder import Run, whole
from latentworks.model import LatentDiffusion
from latentworks.random import randn_like_per_image
from latentworks.recipe import NOUNS, DiffusionRecipe, SamplingDefaults, read_recipe
from latentworks.request import SampleRequest, settings
from latentworks.settings import clock_of, filled, length_of, padded, run_of
from latentworks.types import Batch, Denoise, Step

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
        keep_memory(self.device)
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
            pixels = self._finished(last.x, request, pictures)
            if request.enlarge is not None:
                pixels = yield from self._enlarger(request).enlarge(pixels, part)
            yield Drawn(pixels, part, start + len(part), len(each))

    def draw_batch(self, batch: Batch, request: SampleRequest) -> Iterator[Step | Drawn]:
        """Images for the conditions of a batch, as data has them; of the request count sampler, steps, guidance, eta and seed.

        Raises: ValueError on what the model cannot do.
        """
        count = len(batch["index"])
        request = self.filled(request.replace(n=count, size=None))
        denoise = denoiser(self.model, self.engine, request, batch)
        for step in self._sampled(request.each(), denoise):
            last = step
            yield step
        yield Drawn(self._decoded(last.x, request), request.each(), count, count)

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
        request = self.filled(request.replace(size=pictures.size))
        if request.enlarge is not None:
            self._enlarger(request)  # complains
        return request, pictures

    def filled(self, request: SampleRequest) -> SampleRequest:
        """As `resolve`, but conditions are not looked at."""
        return filled(self.model, self.defaults, request, (self.size, self.size))

    def length(self, request: SampleRequest) -> int:
        """How many steps each batch of a resolved request takes."""
        more = 0 if request.enlarge is None else (large := self._enlarger(request)).length(large.filled(SampleRequest()))
        return length_of(self.model, self.defaults, request) + more

    @torch.no_grad()
    def _steps(self, each: list[SampleRequest], pictures: Pictures) -> Iterator[Step]:
        """The steps of resolved requests that differ in prompt and noise only."""
        request, model = each[0], self.model
        prompts = [one.prompt if isinstance(one.prompt, str) else None for one in each]
        batch = conditions_of(model, request, pictures, padded(model, pictures.size), prompts)
        denoise = denoiser(model, self.engine, request, batch, pictures)
        z = None if request.strength is None else model.encode(batch["image"].to(self.device), run=run_of(model, request))
        yield from self._sampled(each, denoise, z, known_of(model, request, batch))

    @torch.no_grad()
    def _sampled(
        self,
        each: list[SampleRequest],
        denoise: Denoise,
        z: Float[Tensor, "b z h w"] | None = None,
        known: tuple[Float[Tensor, "b z h w"], Bool[Tensor, "b 1 h w"]] | None = None,
    ) -> Iterator[Step]:
        """The sampler's steps from the requests' own noise, or from the noised latents ``z`` after 1 - strength of the steps.

        ``known``: latents to keep but for a hole, which the sampler repaint fills in its own way.
        """
        request, process, first_stage = each[0], self.model.process, self.model.first_stage
        assert request.sampler is not None
        assert request.size is not None
        timesteps, seeds = clock_of(self.model, self.defaults, request), [one.seed for one in each]
        sides = (side // first_stage.factor for side in padded(self.model, request.size))
        x = self._start((len(each), first_stage.channels, *sides), each)
        if z is not None:
            x = process.add_noise(z, x, torch.full((len(each),), timesteps[0], device=self.device))
        options = {name: value for name in ("eta", "jump", "resample") if (value := getattr(request, name)) is not None}
        ancestral = randn_like_per_image("ancestral", seeds)
        if known is not None and request.sampler == "repaint":
            yield from repaint(denoise, x, process, timesteps, ancestral, known=known[0], mask=known[1], **options)
            return
        if known is not None:
            denoise = known_pixels(denoise, *known, process, randn_like_per_image("known pixels", seeds))
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

    def enlarge(
        self, pixels: Shaped[np.ndarray, "b h w c"], each: Sequence[SampleRequest]
    ) -> Generator[Step, None, Shaped[np.ndarray, "b H W c"]]:
        """Finished images made larger by this model of super-resolution, whose steps these are: image i by the seed of ``each[i]``.

        Of the requests count seed and tiles. Raises: ValueError for tiles that are not possible.
        """
        factor = next(c.config.factor for c in self.model.conditioners if isinstance(c, LowResConditioner))
        size = (factor * pixels.shape[1], factor * pixels.shape[2])
        asked = self.filled(SampleRequest(size=size, tile=each[0].tile, overlap=each[0].overlap))
        batch: Batch = {"index": torch.arange(len(each)), "low_res": shown(pixels, padded(self.model, size), factor)}
        for step in self._sampled([asked.replace(seed=one.seed) for one in each], denoiser(self.model, self.engine, asked, batch)):
            last = step
            yield step
        return self._decoded(last.x, asked)

    def _enlarger(self, request: SampleRequest) -> "Pipeline":
        """Of the model that a request enlarges by. Raises: ValueError for one that does not enlarge, or not these images, or tiles."""
        name = request.enlarge
        assert name is not None
        model, recipe = keep_model("enlarge", name, str(self.device))
        if not isinstance(recipe, DiffusionRecipe) or [config.kind for config in recipe.conditioners] != ["low_res"]:
            raise ValueError(f"enlarge: {name} ({recipe.name}) is no model of super-resolution: name one, e.g. openmoji-128")
        assert isinstance(model, LatentDiffusion)
        takes, gives = ((one.first_stage.in_channels, depth) for one, depth in ((model, recipe.data.depth), (self.model, self.depth.name)))
        if takes != gives:
            raise ValueError(
                f"enlarge: {name} takes {takes[0]} channels of {takes[1]}, and {gives[0]} of {gives[1]} are drawn: name another"
            )
        enlarger = Pipeline(model, recipe.sampling, recipe.data.out_size, self.engine, recipe.data.depth)
        enlarger.filled(SampleRequest(tile=request.tile, overlap=request.overlap))  # complains
        return enlarger

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b z h w"], run: Run = whole) -> Shaped[np.ndarray, "b h w c"]:
        """Pixels of latents, in the depth of the training data. ``run``: how the decoder is run."""
        return from_tensor(self.model.first_stage.decode(z, run), self.depth)

    def _decoded(self, z: Float[Tensor, "b z h w"], request: SampleRequest) -> Shaped[np.ndarray, "b h w c"]:
        """Pixels of latents in the request's size."""
        assert request.size is not None
        return self.decode(z, run_of(self.model, request))[:, : request.size[0], : request.size[1]]

    def _finished(self, z: Float[Tensor, "b z h w"], request: SampleRequest, pictures: Pictures) -> Shaped[np.ndarray, "b h w c"]:
        """As `_decoded`, after descent to what guides; outside a hole the given pixels, byte for byte; enlarged ones made to agree."""
        if pictures.guide is not None and request.guide_descent is not None:
            z = descend(z, guide_of(self.model, request, pictures)[1], request.guide_descent)
        pixels = self._decoded(z, request)
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
