"""From a request to the conditions of a batch: which ones a model takes, and the pictures of a request in the model's terms."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image
from torch import Tensor

from latentworks.conditioners import (
    Conditioner,
    FrozenTextConditioner,
    LabelConditioner,
    LayoutConditioner,
    LowResConditioner,
    SegmentationConditioner,
    SegmentationConfig,
    TextConditioner,
)
from latentworks.data.files import as_hole, read_image
from latentworks.data.palette import read_map
from latentworks.data.sources import convert_channels, convert_depth
from latentworks.data.transforms import Pixels, to_tensor
from latentworks.diffusion.guidance import LossOfX0
from latentworks.image_guidance import ImageGuidanceConfig, image_loss, known_latent
from latentworks.model import LatentDiffusion
from latentworks.request import Picture, SampleRequest
from latentworks.types import Batch

__all__ = ["Pictures", "check_conditions", "conditions_of", "droppable", "guide_of", "known_of", "read_pictures", "shown"]

_FIELDS = {"prompt": "text", "label": "label", "boxes": "boxes", "map": "segmentation", "upscale": "low_res", "mask": "mask"}
"""What of a request fills which field of a batch."""

_SAID = {
    "text": "text", "label": "a class", "boxes": "boxes", "segmentation": "a label map", "low_res": "a small image",
    "mask": "an image with a hole",
}  # fmt: skip


class Pictures(NamedTuple):
    """What a request shows: pixels of a small image, of an image and its hole, a label map, a guide; and the size of what is drawn."""

    size: tuple[int, int]
    low_res: Pixels | None = None
    image: Pixels | None = None
    hole: Bool[np.ndarray, "h w"] | None = None
    labels: Int[np.ndarray, "h w"] | None = None
    guide: Pixels | None = None


def droppable(conditioner: Conditioner) -> bool:
    """Whether a model knows "no condition" of this kind, which classifier-free guidance needs."""
    if isinstance(conditioner, LabelConditioner):
        return conditioner.config.null
    return isinstance(conditioner, TextConditioner | FrozenTextConditioner) or conditioner.dropout > 0


def check_conditions(model: LatentDiffusion, request: SampleRequest) -> None:
    """Raises: ValueError for a condition that the model does not take, one that it needs, or one without the image it belongs to."""
    takes = {str(conditioner.field) for conditioner in model.conditioners}
    if beyond := sorted(takes - set(_FIELDS.values())):
        raise ValueError(f"{beyond[0]}: this model needs it, and no request can carry it: use model.condition in Python")
    for name, field in (*_FIELDS.items(), ("negative_prompt", "text")):
        if getattr(request, name) is not None and field not in takes | {"mask"} | ({"label"} if request.classifier is not None else set()):
            known = ", ".join(_SAID[field] for field in sorted(takes)) or "no condition"
            raise ValueError(f"{name}: this model does not take {_SAID[field]}; it takes {known}")
    for name, field in _FIELDS.items():
        if field in takes - {"text", "label"} and getattr(request, name) is None:
            raise ValueError(f"{name}: this model needs {_SAID[field]}: give it (--{name} on the command line)")
    guides = request.guide == "mask" and "mask" not in takes  # then the mask may be the guide's alone
    if request.mask is not None and request.image is None and not guides:
        raise ValueError("mask: it marks the hole of an image: give that too (--image)")
    if request.strength is not None and (request.image is None or request.mask is not None):
        raise ValueError("strength: it says how much of an image is drawn anew: give --image, without --mask")
    for name in ("guide", "guide_distance", "guide_scale", "guide_noise", "guide_descent"):
        if getattr(request, name) is not None and request.guide_image is None:
            raise ValueError(f"{name}: it says how an image guides: give that too (--guide-image), or leave it out")
    if request.back_projection and request.upscale is None:
        raise ValueError("back_projection: it belongs to upscaling: leave it out, or give --upscale")
    if request.classifier_scale is not None and request.classifier is None:
        raise ValueError("classifier_scale: it belongs to a classifier: leave it out, or give --classifier")
    if request.classifier is not None and request.label is None:
        raise ValueError("label: a classifier guides towards a class: give one (--label on the command line)")
    if request.position is not None and request.to_seed is None:
        raise ValueError("position: it lies between two seeds: give to_seed as well")


def read_pictures(model: LatentDiffusion, request: SampleRequest, size: tuple[int, int], depth: np.dtype) -> Pictures:
    """The pictures of a checked request in the model's channels and ``depth``; where there is none, ``size`` is drawn.

    Raises: ValueError naming the file that cannot be read, or does not go with another one or with the model.
    """
    channels = model.first_stage.in_channels
    low_res = image = hole = labels = guide = None
    sizes = {} if request.size is None else {"size": request.size}
    for conditioner in model.conditioners:
        if isinstance(conditioner, LowResConditioner) and request.upscale is not None:
            low_res, factor = _pixels("upscale", request.upscale, channels, depth), conditioner.config.factor
            sizes["upscale"] = (low_res.shape[0] * factor, low_res.shape[1] * factor)
        elif isinstance(conditioner, SegmentationConditioner) and request.map is not None:
            labels = _opened("map", request.map, partial(_labels, conditioner.config))
            sizes["map"] = (labels.shape[0], labels.shape[1])
    if request.image is not None:
        image = _pixels("image", request.image, channels, depth)
        sizes["image"] = (image.shape[0], image.shape[1])
    if request.mask is not None:
        hole = _opened("mask", request.mask, lambda mask: as_hole(np.asarray(mask if mask.mode in ("1", "L", "P") else mask.convert("L"))))
        sizes["mask"] = (hole.shape[0], hole.shape[1])
    if request.guide_image is not None:
        guide = _pixels("guide_image", request.guide_image, channels, depth)
        if request.guide != "down":
            sizes["guide_image"] = (guide.shape[0], guide.shape[1])
    if len(set(sizes.values())) > 1:
        (first, one), (second, other) = next(pair for pair in pairwise(sizes.items()) if pair[0][1] != pair[1][1])
        raise ValueError(f"{second}: it makes {other[1]} x {other[0]} pixels, {first} makes {one[1]} x {one[0]}: they must agree")
    return Pictures(next(iter(sizes.values()), size), low_res, image, hole, labels, guide)


def _labels(config: SegmentationConfig, image: Image.Image) -> Int[np.ndarray, "h w"]:
    return read_map(image, config.classes, config.palette, config.names)


def conditions_of(
    model: LatentDiffusion, request: SampleRequest, pictures: Pictures, padded: tuple[int, int], prompts: Sequence[str | None]
) -> Batch:
    """The batch that `LatentDiffusion.condition` reads for these prompts; pictures are continued at their edges to the ``padded`` size.

    Raises: ValueError for a class or a box that the model does not know.
    """
    count = len(prompts)
    batch: Batch = {"text": [prompt or "" for prompt in prompts], "index": torch.arange(count)}
    for conditioner in model.conditioners:
        match conditioner:
            case LabelConditioner():
                index = 0 if request.label is None else conditioner.index(request.label)
                batch["label"] = torch.full((count,), index)
                batch = conditioner.drop(batch, torch.ones(count, dtype=torch.bool)) if request.label is None else batch
            case LayoutConditioner():
                batch["boxes"] = [list(request.boxes or ())] * count
                conditioner.tokenize(batch["boxes"][:1])  # complains
            case SegmentationConditioner():
                assert pictures.labels is not None
                labels = np.pad(pictures.labels, _padding(pictures.labels.shape, padded), mode="edge")
                batch["segmentation"] = torch.from_numpy(labels).expand(count, -1, -1)
            case LowResConditioner():
                assert pictures.low_res is not None
                batch["low_res"] = shown(pictures.low_res[None], padded, conditioner.config.factor).expand(count, -1, -1, -1)
    if pictures.image is not None:
        batch["image"] = shown(pictures.image[None], padded).expand(count, -1, -1, -1)
    if pictures.hole is not None:
        hole = np.pad(pictures.hole, _padding(pictures.hole.shape, padded), mode="edge")
        batch["mask"] = torch.from_numpy(hole)[None, None].expand(count, -1, -1, -1)
    return batch


def guide_of(model: LatentDiffusion, request: SampleRequest, pictures: Pictures) -> tuple[ImageGuidanceConfig, LossOfX0]:
    """How far samples are from the image that guides them. Raises: ValueError where it does not go with what is drawn."""
    assert pictures.guide is not None
    device = model.first_stage.mean.device
    given = {"guide": request.guide, "distance": request.guide_distance, "scale": request.guide_scale, "noise": request.guide_noise}
    config = ImageGuidanceConfig.parse({name: value for name, value in given.items() if value is not None})
    hole = pictures.hole if config.guide == "mask" else None
    mask = None if hole is None else torch.from_numpy(hole)[None, None].to(device)
    return config, image_loss(config, model.first_stage, to_tensor(pictures.guide[None]).to(device), pictures.size, mask)


def known_of(
    model: LatentDiffusion, request: SampleRequest, batch: Batch
) -> tuple[Float[Tensor, "b z h w"], Bool[Tensor, "b 1 h w"]] | None:
    """The latents to keep and their hole, where an image has one that the model is not told of, or the sampler wants to keep it itself."""
    told = any(conditioner.field == "mask" for conditioner in model.conditioners)
    if "image" not in batch or "mask" not in batch or (told and request.sampler != "repaint"):
        return None
    device = model.first_stage.mean.device
    latent, hole = known_latent(model.first_stage, batch["image"][:1].to(device), batch["mask"][:1].to(device))
    return latent.expand(len(batch["index"]), -1, -1, -1), hole.expand(len(batch["index"]), -1, -1, -1)


def shown(pixels: Shaped[np.ndarray, "b h w c"], padded: tuple[int, int], factor: int = 1) -> Float[Tensor, "b c h2 w2"]:
    """Pictures as a model sees them, continued at their edges to the ``padded`` size of what is drawn, ``factor`` times theirs."""
    rows, columns = _padding(pixels.shape[1:3], (padded[0] // factor, padded[1] // factor))
    return to_tensor(np.pad(pixels, ((0, 0), rows, columns, (0, 0)), mode="edge"))


def _padding(shape: Sequence[int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, size[0] - shape[0]), (0, size[1] - shape[1])


def _pixels(name: str, picture: Picture, channels: int, depth: np.dtype) -> Pixels:
    """Raises: ValueError naming the field."""
    try:
        if isinstance(picture, Path):
            pixels = read_image(picture)
        else:
            pixels = np.asarray(picture if picture.mode in ("L", "LA", "RGB", "RGBA") else picture.convert("RGB"))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return convert_depth(convert_channels(pixels, channels), depth)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _opened(name: str, picture: Picture, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What is read of a picture file or a picture. Raises: ValueError naming the field and the file."""
    if not isinstance(picture, Path):
        return read(picture)
    try:
        with Image.open(picture) as image:
            return read(image)
    except OSError as error:
        raise ValueError(f"{name}: {picture} cannot be read: {error.strerror or error}") from None
