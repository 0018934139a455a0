"""Boxes with classes as condition: spelt as tokens, as the authors do for OpenImages and COCO, and encoded by a transformer."""

from collections.abc import Sequence
from math import isfinite, isqrt
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.conditioners.label import class_index
from latentworks.config import Config
from latentworks.nn.transformer import TextTransformer, TextTransformerConfig
from latentworks.types import Batch, Box, Cond, Gives

__all__ = ["LayoutConditioner", "LayoutConfig", "layout_tokens", "paint"]

Attribute = Literal["group", "occluded", "depiction", "inside"]
Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1, relative to the image."""

BITS: dict[Attribute, int] = {"group": 1, "occluded": 2, "depiction": 4, "inside": 8}
WHOLE: Corners = (0.0, 0.0, 1.0, 1.0)
SLACK = 1e-4  # a box may reach so far out of the image: boxes come rounded


class LayoutConfig(Config):
    """``length`` in tokens: three an object and two for the crop, 92 for 30 objects. ``vocabulary``: entries that classes and places share.

    ``attributes``: what else of a `Box` enters its class token. ``names`` of the classes, in order, if they have any.
    ``painted``: with how many channels of its class a box is also painted onto the latent, see `paint`; 0: not, as the authors do.
    """

    kind: Literal["layout"] = "layout"
    width: int = Field(default=512, ge=1)
    layers: int = Field(default=16, ge=1)
    heads: int = Field(default=8, ge=1)
    head_channels: int = Field(default=64, ge=1)
    length: int = Field(default=92, ge=5)
    vocabulary: int = Field(default=8192, ge=4)
    classes: int = Field(ge=1)
    names: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    painted: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "LayoutConfig":
        if self.names and len(self.names) != self.classes:
            raise ValueError(f"names: {len(self.names)} names for {self.classes} classes: give one each, or none")
        if self.length % 3 != 2:
            raise ValueError(f"length: {self.length} is not three tokens an object and two for the crop: use {self.length // 3 * 3 + 2}")
        if (needed := self.classes * (1 + sum(BITS[name] for name in set(self.attributes))) + 1) > self.vocabulary:
            raise ValueError(f"vocabulary: {self.vocabulary} cannot hold {self.classes} classes with attributes: use {needed} or more")
        return self

    @property
    def objects(self) -> int:
        """The most objects an image can have."""
        return (self.length - 2) // 3


class LayoutConditioner(Conditioner):
    """Reads ``batch["tokens"]`` if it is there, else ``batch["boxes"]``. "No condition" is an image without objects."""

    field = "boxes"

    def __init__(self, config: LayoutConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(concat=config.painted + 2 if config.painted else 0, context=config.width)
        sizes = config.model_dump(include=set(TextTransformerConfig.model_fields))
        self.transformer = TextTransformer(TextTransformerConfig(**sizes))
        self.colours = nn.Embedding(config.classes + 1, config.painted, padding_idx=config.classes) if config.painted else None

    def tokenize(self, boxes: list[list[Box]]) -> Int[Tensor, "b l"]:
        """Token ids of whole images. Raises: ValueError as `layout_tokens`."""
        return torch.tensor([layout_tokens(objects, self.config) for objects in boxes], dtype=torch.long).view(-1, self.config.length)

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """Context ``b length width``; painted boxes as channels, ``b painted + 2 h w``.

        Raises: ValueError when there are neither boxes nor tokens (no boxes, if they are painted), or for those that cannot be.
        """
        if "boxes" not in batch and ("tokens" not in batch or self.colours is not None):
            raise ValueError('boxes: this model is conditioned on boxes; give batch["boxes"], a list of boxes for each image')
        tokens = batch["tokens"] if "tokens" in batch else self.tokenize(batch["boxes"])
        device = self.transformer.tokens.weight.device
        context = self.transformer(tokens.to(device))
        if self.colours is None:
            return Cond(context=context)
        if "size" not in batch:
            raise ValueError("size: boxes are painted onto the latent: give its height and width to LatentDiffusion.condition")
        classes, places = paint(batch["boxes"], self.config, *batch["size"])
        return Cond(torch.cat([self.colours(classes.to(device)).movedim(3, 1), places.to(context)], dim=1), context)

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """No objects where true; in tokens, no objects in the whole image."""
        batch = batch.copy()
        if "boxes" in batch:
            batch["boxes"] = [[] if dropped else boxes for boxes, dropped in zip(batch["boxes"], where.tolist(), strict=True)]
        if "tokens" in batch:
            tokens = batch["tokens"]
            batch["tokens"] = torch.where(where.to(tokens.device)[:, None], self.tokenize([[]]).to(tokens), tokens)
        return batch


def layout_tokens(boxes: Sequence[Box], config: LayoutConfig, crop: Corners = WHOLE) -> list[int]:
    """``config.length`` token ids: class, top-left and bottom-right corner of each object in the order given, then the crop's corners.

    Boxes and crop are both relative to the whole image (taming-transformers, ``objects_bbox.py``). The last id of the vocabulary stands
    for "no object". Raises: ValueError naming the first box that cannot be, or when there are too many.
    """
    if len(boxes) > config.objects:
        raise ValueError(f"boxes: {len(boxes)} in one image, but this model takes {config.objects}: leave out the smallest")
    tokens = []
    for box in boxes:
        x0, y0, x1, y1 = _corners(box)
        tokens += [_class_token(box, config), _place(x0, y0, config), _place(x1, y1, config)]
    tokens += [config.vocabulary - 1] * (config.length - 2 - len(tokens))
    return [*tokens, _place(*crop[:2], config), _place(*crop[2:], config)]


def paint(
    boxes: Sequence[Sequence[Box]], config: LayoutConfig, height: int, width: int
) -> tuple[Int[Tensor, "b h w"], Float[Tensor, "b 2 h w"]]:
    """Whose box a pixel of the latent lies in, and where in it: its class, and (x, y) from -1 to 1 across the box.

    Of boxes that overlap the smallest lies on top; outside all of them the class is ``config.classes`` and the place 0.
    Raises: ValueError as `layout_tokens`.
    """
    classes = torch.full((len(boxes), height, width), config.classes)
    places = torch.zeros(len(boxes), 2, height, width)
    for i, objects in enumerate(boxes):
        for box in sorted(objects, key=lambda box: -box["width"] * box["height"]):
            x0, y0, x1, y1 = _corners(box)
            rows, down = _across(y0, y1, height)
            columns, right = _across(x0, x1, width)
            classes[i, rows, columns] = class_index("boxes", box["label"], config.classes, config.names)
            places[i, 0, rows, columns] = right
            places[i, 1, rows, columns] = down[:, None]
    return classes, places


def _across(start: float, end: float, size: int) -> tuple[slice, Float[Tensor, " n"]]:
    """The pixels whose centres lie between two points of a side, or the nearest one; and where between them, from -1 to 1."""
    first = min(round(start * size), size - 1)
    last = max(round(end * size), first + 1)
    centres = (torch.arange(first, last) + 0.5) / size
    return slice(first, last), ((centres - start) / (end - start) * 2 - 1).clamp(-1, 1)


def _corners(box: Box) -> Corners:
    """Raises: ValueError for a box that is incomplete, empty, or not within the image."""
    if missing := [name for name in ("x", "y", "width", "height", "label") if name not in box]:
        raise ValueError(f"boxes: a box needs x, y, width, height and label: {', '.join(missing)} missing in {dict(box)}")
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]
    place = f"x={x:g} y={y:g} width={width:g} height={height:g}"
    if not (isfinite(x + y + width + height) and width > 0 and height > 0):
        raise ValueError(f"boxes: {place} has no area: give a width and a height above 0")
    if min(x, y) < -SLACK or max(x + width, y + height) > 1 + SLACK:
        raise ValueError(f"boxes: {place} is not within the image, whose sides are 1: divide pixels by the image's size")
    return max(x, 0.0), max(y, 0.0), min(x + width, 1.0), min(y + height, 1.0)


def _class_token(box: Box, config: LayoutConfig) -> int:
    attributes = sum(BITS[name] for name in set(config.attributes) if box.get(name))
    return class_index("boxes", box["label"], config.classes, config.names) + config.classes * attributes


def _place(x: float, y: float, config: LayoutConfig) -> int:
    """The token of the nearest point of a square grid."""
    sections = isqrt(config.vocabulary)
    return round(y * (sections - 1)) * sections + round(x * (sections - 1))
