"""What a request leaves open, filled in as the model was made for: sampler, steps, guidance, tiles; what is not possible is refused."""

from itertools import pairwise

from latentworks.class_guidance import classifier_of
from latentworks.conditions import droppable
from latentworks.diffusion.samplers import JUMP, RESAMPLE, walk
from latentworks.first_stage.autoencoder import Run, whole
from latentworks.first_stage.tiled import in_tiles
from latentworks.model import LatentDiffusion
from latentworks.recipe import SamplingDefaults
from latentworks.request import SampleRequest

__all__ = ["clock_of", "filled", "length_of", "padded", "run_of"]

FIRST_STAGE_TILE = 256
"""Pixels a side of the smallest tiles a first stage is run in: their rims cost time, and its memory is small beside a UNet's."""


def filled(model: LatentDiffusion, defaults: SamplingDefaults, request: SampleRequest, size: tuple[int, int]) -> SampleRequest:
    """The request with the settings of sampling that it leaves open, and ``size`` if it has none; conditions are not looked at.

    Raises: ValueError for settings that are not possible.
    """
    size, sampler, guidance = request.size or size, request.sampler or defaults.sampler, request.guidance
    if request.eta is not None and sampler != "ddim":
        raise ValueError(f"eta: {request.eta} belongs to the sampler ddim (ddpm is ddim with eta 1), not to {sampler}: leave it out")
    guided = any(droppable(conditioner) for conditioner in model.conditioners)  # type: ignore[arg-type]
    if guidance is None:
        guidance = defaults.guidance if guided else 1.0
    if guidance != 1 and not guided:
        raise ValueError(f"guidance: {guidance} needs a condition to guide towards that the model can do without: leave it out")
    if guidance == 1 and request.negative_prompt is not None:
        raise ValueError("negative_prompt: without guidance it has no effect: give a guidance above 1")
    if min(size) < 1:
        raise ValueError(f"size: {size[1]} x {size[0]} has no pixels: give 1 or more")
    strength = 0.6 if request.strength is None and request.image is not None and request.mask is None else request.strength
    scale = request.classifier_scale
    if request.classifier is not None:
        height, width = (side // model.first_stage.factor for side in padded(model, size))
        classifier_of(model, request).net.check_size(height, width)
        scale = 1.0 if scale is None else scale
    steps = request.steps or defaults.steps
    request = request.replace(sampler=sampler, steps=steps, guidance=guidance, size=size, strength=strength, classifier_scale=scale)
    request = _with_jumps(request.replace(overlap=_overlap(model, request)))
    length_of(model, defaults, request)  # complains
    return request


def _with_jumps(request: SampleRequest) -> SampleRequest:
    """With what the sampler repaint goes back by. Raises: ValueError where it has nothing to fill, or another sampler is to go back."""
    if request.sampler == "repaint":
        if request.image is None or request.mask is None:
            raise ValueError("sampler: repaint fills the hole of an image: give that and its mask, or use another sampler")
        return request.replace(jump=request.jump or JUMP, resample=request.resample or RESAMPLE)
    if request.jump is not None or request.resample is not None:
        raise ValueError(f"jump, resample: they belong to the sampler repaint, not to {request.sampler}: leave them out")
    return request


def _overlap(model: LatentDiffusion, request: SampleRequest) -> int | None:
    """Pixels that tiles share, if there are tiles. Raises: ValueError for tiles that are not possible."""
    tile, overlap, factor, multiple = request.tile, request.overlap, model.first_stage.factor, _multiple(model)
    if tile is None:
        if overlap is not None:
            raise ValueError(f"overlap: {overlap} pixels are shared by tiles, and there are none: give tile as well")
        return None
    if tile % multiple:
        raise ValueError(f"tile: {tile} pixels cannot be halved as often as the model does: use a multiple of {multiple}")
    if overlap is None:
        return tile // 2 // factor * factor  # with a quarter, what tiles show still jumps at their borders
    if overlap % factor or overlap >= tile:
        raise ValueError(f"overlap: {overlap} is not possible with tiles of {tile}: use a multiple of {factor} below that")
    return overlap


def clock_of(model: LatentDiffusion, defaults: SamplingDefaults, request: SampleRequest) -> list[int]:
    """The values of t of a filled request; with ``strength`` the last ones. Raises: ValueError where so many steps are not possible."""
    assert request.steps is not None
    timesteps = model.process.timesteps(request.steps, defaults.spacing)
    return timesteps if request.strength is None else timesteps[-1 - max(1, round(request.strength * request.steps)) :]


def length_of(model: LatentDiffusion, defaults: SamplingDefaults, request: SampleRequest) -> int:
    """How many steps each batch of a filled request takes. Raises: as `clock_of`."""
    clock = clock_of(model, defaults, request)
    if request.jump is not None and request.resample is not None:
        clock = walk(clock, request.jump, request.resample)
    return sum(t_next < t for t, t_next in pairwise(clock))


def padded(model: LatentDiffusion, size: tuple[int, int]) -> tuple[int, int]:
    """The next size that the networks can halve as often as they do."""
    multiple = _multiple(model)
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def run_of(model: LatentDiffusion, request: SampleRequest) -> Run:
    """How the first stage is run: whole, or in tiles."""
    return whole if request.tile is None else in_tiles(max(request.tile, FIRST_STAGE_TILE) // model.first_stage.factor)


def _multiple(model: LatentDiffusion) -> int:
    return model.first_stage.factor * model.unet.config.factors[-1]
