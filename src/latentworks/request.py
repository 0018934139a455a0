"""What is asked for: one schema for the command line and Python, and how it is written into the images drawn."""

import json
from pathlib import Path
from typing import Annotated

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, InstanceOf, PlainSerializer, field_validator

from latentworks.config import Config, nearest
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.image_guidance import Distance, Guide
from latentworks.types import Box

__all__ = ["Picture", "SampleRequest", "settings", "settings_of", "settings_png"]


def _name(picture: Path | Image.Image) -> str:
    return picture.name if isinstance(picture, Path) else f"{picture.width}x{picture.height}"


Picture = Annotated[Path | InstanceOf[Image.Image], PlainSerializer(_name, when_used="json")]
"""An image file, or Pillow's image; of a file its name alone is written into what is drawn."""

ModelName = Annotated[Path, PlainSerializer(lambda path: path.name, when_used="json")]
"""A run or model folder, or a bundled model; its name alone is written into what is drawn."""


class SampleRequest(Config):
    """What to draw. None means "as the model was made for". Image i has seed ``seed + i`` and does not depend on ``batch``.

    ``boxes`` are relative to the image's sides. ``map``: a label map, numbers or the model's colours. ``upscale``: the image to enlarge;
    ``back_projection``: steps that make the result agree with it once reduced again. ``image`` with ``mask`` (white: the hole) is
    inpainted; alone it is where drawing starts, after the first 1 - ``strength`` of the steps. A model not trained to inpaint keeps the
    known pixels at every step; the sampler repaint also goes back ``jump`` steps, ``resample`` - 1 times. ``guide_image`` guides without
    retraining: see `ImageGuidanceConfig`; ``mask`` is then that of ``guide`` "mask"; ``guide_descent``: steps of descent that bring what is
    drawn closer still. With ``to_seed`` the images lie evenly between the
    noise of ``seed`` and that one, or at ``position`` (0 to 1) between them. ``classifier``: a run of a classifier recipe, whose gradient,
    times ``classifier_scale`` (default 1), leads towards ``label``, also a model that knows no classes. With ``tile`` the
    model sees so many pixels a side at a time, ``overlap`` of which neighbours share (half); it then needs the memory of a tile.
    ``enlarge``: a model of super-resolution, which makes what is drawn larger, in its own sampler and steps; ``size`` is that before.
    """

    prompt: str | tuple[str, ...] | None = None
    negative_prompt: str | None = None
    label: str | int | None = None
    boxes: tuple[Box, ...] | None = None
    map: Picture | None = None
    upscale: Picture | None = None
    back_projection: int = Field(0, ge=0, le=100)
    image: Picture | None = None
    mask: Picture | None = None
    strength: float | None = Field(None, gt=0, le=1)
    guide_image: Picture | None = None
    guide: Guide | None = None
    guide_distance: Distance | None = None
    guide_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
    guide_noise: float | None = Field(None, gt=0, allow_inf_nan=False)
    guide_descent: int | None = Field(None, ge=1, le=100)
    n: int = Field(1, ge=1, description="images for each prompt")
    seed: int = 0
    to_seed: int | None = None
    position: float | None = Field(None, ge=0, le=1)
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = None
    classifier: ModelName | None = None
    classifier_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
    eta: float | None = Field(None, ge=0, le=1)
    jump: int | None = Field(None, ge=1)
    resample: int | None = Field(None, ge=1)
    size: tuple[int, int] | None = Field(None, description="height, width in pixels")
    tile: int | None = Field(None, ge=1, description="pixels a side of the tiles that larger images are drawn in")
    overlap: int | None = Field(None, ge=0, description="pixels that neighbouring tiles share")
    enlarge: ModelName | None = None
    batch: int = Field(16, ge=1, description="images drawn at once")

    @field_validator("sampler")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in (known := [*SAMPLERS, "repaint"]):
            raise ValueError(f"unknown sampler {value!r}: {nearest(value, known)}")
        return value

    def prompts(self) -> list[str | None]:
        """One prompt an image, in order."""
        given = [self.prompt] if self.prompt is None or isinstance(self.prompt, str) else list(self.prompt)
        return [prompt for prompt in given for _ in range(self.n)]

    def each(self) -> "list[SampleRequest]":
        """One request an image, in order: what is needed to draw it alone."""
        prompts = self.prompts()
        if self.to_seed is None:
            return [self.replace(prompt=prompt, n=1, seed=self.seed + i) for i, prompt in enumerate(prompts)]
        last = max(len(prompts) - 1, 1)
        places = [i / last if self.position is None else self.position for i in range(len(prompts))]
        return [self.replace(prompt=prompt, n=1, position=place) for prompt, place in zip(prompts, places, strict=True)]


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
    enlarged = f", Hires upscaler: {request.enlarge.name}" if request.enlarge is not None else ""
    return (
        f"{request.prompt or ''}{negative}\nSteps: {request.steps}, Sampler: {request.sampler}, CFG scale: {request.guidance}, "
        f"Seed: {request.seed}, Size: {size[1]}x{size[0]}{enlarged}"
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
