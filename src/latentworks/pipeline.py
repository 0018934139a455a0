"""From a request to images: condition, guidance, noise from per-image seeds, sampler, decode; one schema for command line and Python."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, field_validator
from torch import Tensor

from latentworks.config import Config, nearest
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.engine import Engine
from latentworks.model import LatentDiffusion
from latentworks.random import randn_like_per_image
from latentworks.recipe import SamplingDefaults
from latentworks.types import Batch, Cond, Step

__all__ = ["Pipeline", "SampleRequest", "settings_png"]


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


class Pipeline:
    """A loaded model ready to draw. Stateless between calls, so one may serve many threads."""

    def __init__(self, model: LatentDiffusion, defaults: SamplingDefaults, size: int, engine: Engine | None = None) -> None:
        self.model, self.defaults, self.size = model, defaults, size
        self.engine = engine or Engine()
        self.device = self.engine.resolve()
        self.model.to(self.device).eval()

    def __call__(self, prompt: str | Sequence[str] | None = None, **settings: Any) -> list[Image.Image]:
        """Images for a prompt (or prompts), settings as in `SampleRequest`; each carries its settings in ``.info``."""
        text = prompt if prompt is None or isinstance(prompt, str) else tuple(prompt)
        request = SampleRequest.parse({"prompt": text, **settings})
        return [image for batch, _, _ in self.batches(request) for image in batch]

    def batches(self, request: SampleRequest) -> Iterator[tuple[list[Image.Image], int, int]]:
        """Finished images in batches, as (images, images done, images in all)."""
        total = len(request.prompts())
        for start in range(0, total, request.batch):
            stop = min(start + request.batch, total)
            *_, last = self.stream(request, start, stop)
            yield self.images(last.x, request, start), stop, total

    def stream(self, request: SampleRequest, start: int = 0, stop: int | None = None) -> Iterator[Step]:
        """Steps of images start..stop, in latent space; stop iterating to cancel. Raises: ValueError on what the model cannot do."""
        request = self.resolve(request)
        prompts = request.prompts()[start:stop]
        height, width = request.size or (self.size, self.size)
        first_stage = self.model.first_stage
        first_stage.check_size(height, width)
        latent = (len(prompts), first_stage.channels, height // first_stage.factor, width // first_stage.factor)
        seeds = [request.seed + start + i for i in range(len(prompts))]
        assert request.steps is not None
        assert request.sampler is not None
        timesteps = self.model.process.timesteps(request.steps, self.defaults.spacing)
        options = {} if request.eta is None else {"eta": request.eta}
        with torch.no_grad():
            denoise = self._denoise(request, prompts)
            x = randn_like_per_image("start", seeds)(torch.empty(latent, device=self.device))
            yield from SAMPLERS[request.sampler](
                denoise, x, self.model.process, timesteps, randn_like_per_image("ancestral", seeds), **options
            )

    def resolve(self, request: SampleRequest) -> SampleRequest:
        """The request with the model's defaults filled in. Raises: ValueError when a needed condition is missing or not understood."""
        fields = {conditioner.field for conditioner in self.model.conditioners}
        if request.prompt is not None and "text" not in fields:
            raise ValueError(f"prompt: this model takes no text; it takes {', '.join(sorted(map(str, fields))) or 'no condition'}")
        if request.label is not None and "label" not in fields:
            raise ValueError(f"label: this model takes no class; it takes {', '.join(sorted(map(str, fields))) or 'no condition'}")
        return request.replace(
            sampler=request.sampler or self.defaults.sampler,
            steps=request.steps or self.defaults.steps,
            guidance=(self.defaults.guidance if fields else 1.0) if request.guidance is None else request.guidance,
            size=request.size or (self.size, self.size),
        )

    def _denoise(self, request: SampleRequest, prompts: list[str | None]) -> Any:
        """The model closed over condition and guidance; a prompt of None is the model's own "no condition"."""
        batch: Batch = {"text": [prompt or "" for prompt in prompts], "index": torch.arange(len(prompts))}
        none = torch.tensor([prompt is None for prompt in prompts], device=self.device)
        for conditioner in self.model.conditioners:
            if conditioner.field == "label":
                index = 0 if request.label is None else conditioner.index(request.label)  # type: ignore[operator]
                batch["label"] = torch.full((len(prompts),), index, device=self.device)
                none = torch.full_like(none, request.label is None)
        everywhere = torch.ones_like(none)
        cond = self.model.condition(batch, none)
        negative: Batch = {**batch, "text": [request.negative_prompt or ""] * len(prompts)}
        uncond = self.model.condition(negative, everywhere if request.negative_prompt is None else None)

        def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
            with self.engine.autocast():
                return self.model.predict(x_t, t, cond).float()

        assert request.guidance is not None
        return classifier_free(predict, cond, uncond, request.guidance if self.model.conditioners else 1.0)

    @torch.no_grad()
    def images(self, z: Tensor, request: SampleRequest, start: int = 0) -> list[Image.Image]:
        """Decode latents; image i carries its settings in ``.info`` (written by `settings_png`)."""
        request = self.resolve(request)
        prompts = request.prompts()
        images = []
        for i, pixels in enumerate(from_tensor(self.model.first_stage.decode(z).float().cpu())):
            image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            one = request.replace(prompt=prompts[start + i], n=1, seed=request.seed + start + i)
            image.info["latentworks"] = one.model_dump_json(exclude_none=True, exclude={"batch"})
            image.info["parameters"] = _parameters(one)
            images.append(image)
        return images


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
