"""Images as condition, joined to the latent along channels: a class map, a small version of the image, the image with a hole."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentworks.conditioners.base import Conditioner, Encode
from latentworks.config import Config
from latentworks.types import Batch, Cond, Gives

__all__ = [
    "LowResConditioner",
    "LowResConfig",
    "MaskedImageConditioner",
    "MaskedImageConfig",
    "SegmentationConditioner",
    "SegmentationConfig",
]


class SegmentationConfig(Config):
    """``stages``: how often the map is halved, from its own size to the latent's. ``channels`` it is joined to the latent as.

    ``names`` of the classes and their colours (``palette``, RGB of 0 to 255), in order, if they have any.
    """

    kind: Literal["segmentation"] = "segmentation"
    classes: int = Field(ge=1)
    channels: int = Field(default=3, ge=1)
    stages: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.0, ge=0, le=1)
    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "SegmentationConfig":
        for name, given in (("names", self.names), ("palette", self.palette)):
            if given and len(given) != self.classes:
                raise ValueError(f"{name}: {len(given)} for {self.classes} classes: give one each, or none")
        return self


class SegmentationConditioner(Conditioner):
    """Reads ``batch["segmentation"]``, classes of pixels (the authors' ``SpatialRescaler``). A pixel of -1 has no class: "no condition"."""

    field = "segmentation"

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(concat=config.channels)
        self.mapper = nn.Conv2d(config.classes, config.channels, 1, bias=False)
        nn.init.normal_(self.mapper.weight)  # of one-hot planes it is a table of classes: as strong as the latent beside it

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """``b channels h w``, 2^stages times smaller than the map. Raises: ValueError without a map, or for an unknown class."""
        if "segmentation" not in batch:
            raise ValueError('segmentation: this model is conditioned on class maps; give batch["segmentation"], integers of shape b h w')
        label = batch["segmentation"].to(self.mapper.weight.device).long()[:, None]
        unknown = label[(label < -1) | (label >= self.config.classes)]
        if unknown.numel():
            limit = self.config.classes - 1
            raise ValueError(f"segmentation: {int(unknown[0])} is not a class of this model: use 0 to {limit}, or -1 for none")
        b, _, height, width = label.shape
        planes = self.mapper.weight.new_zeros(b, self.config.classes, height, width)
        planes.scatter_(1, label.clamp(min=0), (label >= 0).to(planes.dtype))
        for _ in range(self.config.stages):
            planes = F.interpolate(planes, scale_factor=0.5, mode="bilinear")
        return Cond(concat=self.mapper(planes))

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """No class anywhere where true."""
        if "segmentation" not in batch or not bool(where.any()):
            return batch
        label = batch["segmentation"].long()
        return {**batch, "segmentation": torch.where(where.to(label.device).view(-1, 1, 1), -1, label)}


class LowResConfig(Config):
    """``channels`` of the small image, ``factor`` times smaller than the large one, and the ``degradation`` that made it in training.

    How it comes to the latent's size: enlarged ``scale`` times (bicubic) where ``factor`` is larger than the first stage's; where it is
    smaller, squares of ``fold`` x ``fold`` pixels become channels of one; as it is (1 and 1) where it is the same.
    """

    kind: Literal["low_res"] = "low_res"
    channels: int = Field(default=3, ge=1)
    factor: int = Field(default=4, ge=1)
    degradation: Literal["bicubic", "bsr"] = "bicubic"
    scale: int = Field(default=1, ge=1)
    fold: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.0, ge=0, le=1)


class LowResConditioner(Conditioner):
    """Reads ``batch["low_res"]``, an image in [-1, 1], and gives it in the latent's size. "No condition" is an image of zeros."""

    field = "low_res"

    def __init__(self, config: LowResConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(concat=config.channels * config.fold**2)

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """The image in the latent's size. Raises: ValueError without one, or for another number of channels."""
        if "low_res" not in batch:
            raise ValueError('low_res: this model is conditioned on small images; give batch["low_res"], in [-1, 1]')
        image = batch["low_res"]
        if image.shape[1] != self.config.channels:
            raise ValueError(f"low_res: it has {image.shape[1]} channels, but this model takes images of {self.config.channels}")
        if self.config.scale > 1:
            image = F.interpolate(image, scale_factor=self.config.scale, mode="bicubic")
        return Cond(concat=F.pixel_unshuffle(image, self.config.fold) if self.config.fold > 1 else image)

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """Zeros where true."""
        if "low_res" not in batch or not bool(where.any()):
            return batch
        image = batch["low_res"]
        return {**batch, "low_res": torch.where(where.to(image.device).view(-1, 1, 1, 1), torch.zeros_like(image), image)}


class MaskedImageConfig(Config):
    """``channels`` of the latent. ``convention`` of what is joined to it, and what fills the hole:

    "ldm", the authors' inpainting model: the encoded image, not normalised, then the mask in {-1, 1}; the hole is black (-1).
    "sd", Stable Diffusion's: the mask in {0, 1}, then the encoded image, normalised; the hole is grey (0).
    """

    kind: Literal["masked_image"] = "masked_image"
    channels: int = Field(default=3, ge=1)
    convention: Literal["ldm", "sd"] = "ldm"
    dropout: float = Field(default=0.0, ge=0, le=1)


class MaskedImageConditioner(Conditioner):
    """Reads ``batch["mask"]`` (1 or true: the hole) and ``batch["masked_image"]``, which it makes of ``batch["image"]`` if it is not there.

    "No condition" is a hole as large as the image.
    """

    field = "mask"

    def __init__(self, config: MaskedImageConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = config.dropout
        self.gives = Gives(concat=config.channels + 1)
        self.hole = {"ldm": -1.0, "sd": 0.0}[config.convention]

    def forward(self, batch: Batch, encode: Encode) -> Cond:
        """``b channels + 1 h w``, of the latent's size. Raises: ValueError without mask or image, or when they do not fit."""
        hole = self._hole(batch)
        image = batch["masked_image"] if "masked_image" in batch else torch.where(hole, self.hole, batch["image"])
        latent = encode(image, normalised=self.config.convention == "sd")
        mask = F.interpolate(hole.to(latent), size=latent.shape[2:])  # nearest
        return Cond(concat=torch.cat([latent, 2 * mask - 1] if self.config.convention == "ldm" else [mask, latent], dim=1))

    def drop(self, batch: Batch, where: Bool[Tensor, " b"]) -> Batch:
        """All is hole where true."""
        if "mask" not in batch or not bool(where.any()):
            return batch
        batch, everywhere = batch.copy(), where.to(batch["mask"].device).view(-1, 1, 1, 1)
        batch["mask"] = torch.where(everywhere, torch.ones_like(batch["mask"]), batch["mask"])
        if "masked_image" in batch:
            image = batch["masked_image"]
            batch["masked_image"] = torch.where(everywhere.to(image.device), self.hole, image)
        return batch

    def _hole(self, batch: Batch) -> Bool[Tensor, "b 1 h w"]:
        """The mask, on the image's device."""
        if "mask" not in batch or not ("masked_image" in batch or "image" in batch):
            raise ValueError(
                'mask: this model is conditioned on an image with a hole; give batch["mask"] (b 1 h w, 1 is the hole) and batch["image"]'
            )
        image: Float[Tensor, "b c h w"] = batch["masked_image"] if "masked_image" in batch else batch["image"]
        mask = batch["mask"].to(image.device)
        if mask.shape[1] != 1 or mask.shape[2:] != image.shape[2:]:
            raise ValueError(f"mask: its shape {tuple(mask.shape)} must be that of the image, {tuple(image.shape)}, with one channel")
        if mask.numel() and not 0 <= float(mask.min()) <= float(mask.max()) <= 1:
            raise ValueError(f"mask: values must lie in 0 (keep) to 1 (hole), not {float(mask.min()):g} to {float(mask.max()):g}")
        return mask > 0.5
