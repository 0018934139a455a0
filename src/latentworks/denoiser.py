"""A model closed over a request's conditions and all its guidance, from the inside: tiles, classifier-free, a classifier's, an image's."""

import torch
from torch import Tensor

from latentworks.class_guidance import classifier_of, towards
from latentworks.conditioners import Conditioner
from latentworks.conditions import Pictures, droppable, guide_of
from latentworks.diffusion.guidance import classifier, classifier_free, image
from latentworks.diffusion.tiling import areas, boxes_within, per_tile, tiled
from latentworks.engine import Engine
from latentworks.model import LatentDiffusion
from latentworks.request import SampleRequest
from latentworks.settings import padded, run_of
from latentworks.types import Batch, Cond, Denoise, Predict

__all__ = ["denoiser"]


def denoiser(model: LatentDiffusion, engine: Engine, request: SampleRequest, batch: Batch, pictures: Pictures | None = None) -> Denoise:
    """For a filled request; of ``pictures`` the one that guides counts. Raises: ValueError for guidance that is not possible."""
    denoise = _classifier_free(model, engine, request, batch)
    if request.classifier is not None:
        assert request.classifier_scale is not None
        log_prob = towards(classifier_of(model, request), batch, request, engine)
        denoise = classifier(denoise, log_prob, model.process, request.classifier_scale)
    if pictures is not None and pictures.guide is not None:
        config, loss = guide_of(model, request, pictures)
        denoise = image(denoise, loss, model.process, config.scale, config.noise)
    return denoise


def _classifier_free(model: LatentDiffusion, engine: Engine, request: SampleRequest, batch: Batch) -> Denoise:
    cond = _condition(model, request, batch)

    def predict_whole(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with engine.autocast():
            return model.predict(x_t, t, cond).float()

    predict: Predict = predict_whole
    if request.tile is not None and request.overlap is not None:
        predict = tiled(predict, *(pixels // model.first_stage.factor for pixels in (request.tile, request.overlap)))
    assert request.guidance is not None
    if request.guidance == 1:
        return lambda x_t, t: predict(x_t, t, cond)
    none, everywhere = batch, torch.ones(len(batch["index"]), dtype=torch.bool)
    for conditioner in model.conditioners:
        assert isinstance(conditioner, Conditioner)
        none = conditioner.drop(none, everywhere) if droppable(conditioner) else none
    if request.negative_prompt is not None:
        none = {**none, "text": [request.negative_prompt] * len(everywhere)}
    return classifier_free(predict, cond, _condition(model, request, none), request.guidance)


def _condition(model: LatentDiffusion, request: SampleRequest, batch: Batch) -> Cond:
    """The condition of a batch, its boxes as the padded image shows them, in the tokens as each tile does."""
    assert request.size is not None
    run, factor = run_of(model, request), model.first_stage.factor
    latent = tuple(side // factor for side in padded(model, request.size))
    shown = (request.size[0] / factor, request.size[1] / factor)

    def within(tile: int, overlap: int) -> list[Cond]:
        conds = []
        for area in areas((latent[0], latent[1]), tile, overlap, shown):
            boxes = [boxes_within(objects, area) for objects in batch["boxes"]]
            conds.append(model.condition({**batch, "boxes": boxes}, run=run, size=latent))
        return conds

    if "boxes" not in batch:
        return model.condition(batch, run=run, size=latent)
    (whole,) = within(max(latent), 0)
    if request.tile is None or request.overlap is None:
        return whole
    return per_tile(within(request.tile // factor, request.overlap // factor))._replace(concat=whole.concat)
