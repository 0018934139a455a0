"""A request's classifier: loaded once, checked against the model that it is to guide, and closed over the classes asked for."""

import torch
from torch import Tensor

from latentworks.checkpoints.resolve import keep_model
from latentworks.conditioners import LabelConditioner
from latentworks.diffusion.guidance import LogProb
from latentworks.engine import Engine
from latentworks.model import LatentDiffusion
from latentworks.noisy_classifier import NoisyClassifier
from latentworks.recipe import NOUNS
from latentworks.request import SampleRequest
from latentworks.types import Batch

__all__ = ["classifier_of", "towards"]


def classifier_of(model: LatentDiffusion, request: SampleRequest) -> NoisyClassifier:
    """The classifier that a request names, on the model's device.

    Raises: ValueError when there is none of that name, or it was trained in another latent space, for another process, or on other classes.
    """
    assert request.classifier is not None
    classifier, recipe = keep_model("classifier", request.classifier, str(model.first_stage.mean.device))
    if not isinstance(classifier, NoisyClassifier):
        what = f"{request.classifier} is a {NOUNS[recipe.kind]} ({recipe.name})"
        raise ValueError(f"classifier: {what}: name a run of a classifier recipe, e.g. class-64-classifier")
    classifier.check(model.first_stage, model.process)
    for conditioner in model.conditioners:
        if isinstance(conditioner, LabelConditioner) and conditioner.config.names != classifier.config.names:
            differ = sorted(set(conditioner.config.names) ^ set(classifier.config.names)) or ["their order"]
            raise ValueError(f"classifier: its classes are not those of the model ({', '.join(differ[:5])}): train one on the model's data")
    if request.label is not None:
        classifier.index(request.label)  # complains
    return classifier


def towards(classifier: NoisyClassifier, batch: Batch, request: SampleRequest, engine: Engine) -> LogProb:
    """log p(y | x_t) of the classes of a batch, or where it has none of the request's. Raises: ValueError where neither says one."""
    count, device = len(batch["index"]), classifier.first_stage.mean.device
    if request.label is None and ("label" not in batch or bool((batch["label"] >= classifier.config.classes).any())):
        raise ValueError("label: a classifier guides towards a class: give one (--label on the command line)")
    label = batch["label"] if "label" in batch else torch.full((count,), classifier.index(request.label or 0))
    label = label.to(device)

    def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
        with engine.autocast():
            return classifier.log_prob(x_t, t, label)

    return log_prob
