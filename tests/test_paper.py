"""The paper's models: as large as the paper and the authors' code have them. That they train: test_recipes.py."""

import re
from pathlib import Path

import pytest

from latentworks.costs.count import parameters
from latentworks.recipes import RECIPES
from latentworks.recipes.first_stages import FIRST_STAGES
from latentworks.recipes.paper import PAPER
from latentworks.recipes.published import PUBLISHED, unused_output
from latentworks.recipes.sweeps import SWEEPS
from toys import FIRST_STAGE, lw

ALL = [*FIRST_STAGES, *PAPER, *SWEEPS]


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_is_named_and_says_its_table(name):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert re.match(r"(Table \d+|Released only|Later): .+\.$", RECIPES[name].__doc__)
    assert type(recipe).parse(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_authors_code(name):
    """To the digits printed; the authors' text transformers carry an output layer that nothing uses."""
    recipe, published = RECIPES[name](), PUBLISHED[name]
    ours = parameters(recipe)
    for part, millions in published.code.items():
        extra = unused_output(recipe) if part == "conditioners" else 0
        assert round((ours[part] + extra) / 1e6, 2) == millions, part


def test_everything_is_compared_that_the_authors_gave_numbers_for():
    assert set(PAPER) | set(SWEEPS) <= set(PUBLISHED)
    assert set(PUBLISHED) <= set(ALL)


def test_the_discriminator_starts_at_the_step_the_authors_say():
    for name, start in {"vq-f4": 0, "vq-f4-noattn": 11, "vq-f8": 1, "vq-f16": 250_001, "kl-f8": 50_001}.items():
        recipe = RECIPES[name]()
        assert int(recipe.objective.discriminator_start * recipe.train.steps) == start


def test_info_shows_the_papers_figures_beside_ours(monkeypatch, capsys):
    code, out, _ = lw(monkeypatch, capsys, "info", "ldm-kl-8-text-1p4b")
    assert code == 0
    assert "latent: 4 x 32 x 32 of 256 px, f = 8" in out
    assert "unet: 872.30 M; 872.30 M in the authors' code" in out
    assert "conditioners: 542.90 M; 581.99 M in the authors' code, with 39.10 M of an output layer that nothing uses" in out
    assert "the paper: 1.45B (Table 2)" in out
    assert re.search(r"denoising step: [\d.]+ GFLOP", out)
    assert '"kind": "latent_diffusion"' in lw(monkeypatch, capsys, "info", "sd-v1", "--json")[1]


def test_plan_says_memory_time_and_days(monkeypatch, capsys):
    code, out, _ = lw(monkeypatch, capsys, "plan", "vq-f4", "--no-measure")
    assert code == 0
    assert re.search(r"training vq-f4, batch 8, 256 px, \w+: [\d.]+ GB", out)
    assert re.search(r"V100-days: [\d.]+ \(the paper, Table 18: 29\)", out)
    assert "time here" not in out
    tiny = [argument for override in FIRST_STAGE for argument in ("--set", override)]
    code, out, _ = lw(monkeypatch, capsys, "plan", "openmoji-64-ae", *tiny, "--batch", "2", "--size", "16")
    assert code == 0
    assert re.search(r"time here, one process: [\d.,]+ \w+", out)
    code, _, err = lw(monkeypatch, capsys, "plan", "ldm-4-celebahq-256", "--no-measure", "--size", "100")
    assert (code, err.count("\n")) == (2, 1)


def test_the_page_of_recipes_lists_them_all():
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) == list(RECIPES), "python reproduction/recipes.py writes it anew"
