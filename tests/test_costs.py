"""What recipes cost: counted against formulas and against what was measured; a plan's time against a run's."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentworks.costs.count import count
from latentworks.costs.memory import sampling_memory, training_memory
from latentworks.costs.rehearsal import Rehearsal, resized
from latentworks.costs.time import STEPS, run_seconds, seconds_of_steps, twin, v100_days
from latentworks.nn.attention import AttentionBlock
from latentworks.recipes import get_recipe
from latentworks.recipes.published import PUBLISHED
from toys import ae, classifier, ldm

MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "memory.json"


def small(*overrides, name="openmoji-64"):
    return ldm(*overrides, name=name).replace(first_stage=ae().first_stage.model_dump())


def test_attention_is_counted():
    """Against the formula: qkv and output are 4 c^2 multiply-adds a pixel, the two products 2 c a pair of pixels."""
    c, pixels = 32, 8 * 8
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        AttentionBlock(c, heads=4)(torch.zeros(1, c, 8, 8))
    assert counter.get_total_flops() == 2 * (4 * c * c * pixels + 2 * c * pixels**2)


def test_training_costs_three_times_the_forward_pass():
    cost = count(small())
    assert 2.9 < cost.train / cost.denoise < 3.1
    assert cost.latent == (2, 8, 8)
    assert count(resized(small(), 32)).denoise > 3.9 * cost.denoise


def test_a_network_counted_on_meta_is_the_one_that_is_built():
    cost, rehearsal = count(small()), Rehearsal(small())
    assert cost.parameters == {name: sum(p.numel() for p in part.parameters()) for name, part in rehearsal.model.named_children()}
    with FlopCounterMode(display=False) as counter, torch.enable_grad():  # with gradients attention is two products on a CPU too
        rehearsal.denoise(1)
    assert counter.get_total_flops() == cost.denoise


ROWS = [row for row in json.loads(MEASURED.read_text())["rows"] if row["what"].startswith(("train", "sample"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['what']}, batch {row['batch']}, {row['precision']}")
def test_memory_is_what_was_measured(row):
    recipe, bf16 = get_recipe(row["what"].split(",")[0].split()[1]), row["precision"] == "bf16"
    needs = training_memory(recipe, row["batch"], bf16) if row["what"].startswith("train") else sampling_memory(recipe, row["batch"], bf16)
    assert math.isclose(needs.total, row["peak_mb"] * 1e6, rel_tol=0.25)


def test_of_a_classifier_the_net_alone_is_trained():
    cost = count(classifier())
    assert training_memory(classifier()).gradients == 4 * cost.parameters["net"]
    assert 2.9 < cost.train / cost.denoise < 3.1


def test_memory_of_training_has_its_parts():
    recipe = small()
    needs = training_memory(recipe)
    assert needs.gradients == 4 * sum(count(recipe).parameters[part] for part in ("unet", "conditioners"))
    assert (needs.optimiser, needs.average) == (2 * needs.gradients, needs.gradients)
    twice = training_memory(recipe, 2 * recipe.train.batch)
    assert 1.8 < twice.activations / needs.activations < 2.2
    assert training_memory(recipe.replace(train=recipe.train.replace(ema=0.0).model_dump())).average == 0


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("ldm-4-celebahq-256", []), ("ldm-kl-8-text-1p4b", ["conditioners.0.layers=1"]), ("ldm-4-inpainting", [])],
)
def test_a_twin_is_narrow_and_of_the_same_shape(name, overrides):
    recipe = get_recipe(name, overrides)
    found = twin(recipe)
    assert found.divisor > 1
    assert found.recipe.train.steps == STEPS
    assert found.recipe.unet.channels * found.divisor == recipe.unet.channels
    assert found.recipe.unet.multipliers == recipe.unet.multipliers
    assert found.recipe.data.out_size == recipe.data.out_size // 2 ** (len(recipe.first_stage.multipliers) - 1)


@pytest.mark.parametrize(
    "recipe",
    [ae("train.steps=400"), small("train.steps=400"), small("train.steps=400", name="class-64"), classifier("train.steps=400")],
)
def test_a_small_recipe_is_its_own_twin_and_time_is_scaled(recipe):
    found = twin(recipe)
    assert (found.divisor, found.recipe.train.batch) == (1, 4)
    measured = list(seconds_of_steps(found))
    assert len(measured) == STEPS
    assert min(measured) > 0
    whole = run_seconds(recipe, found, measured)
    assert math.isclose(whole, 400 * statistics.median(measured[4:]))
    doubled = recipe.replace(train=recipe.train.replace(accumulate=2).model_dump())
    assert math.isclose(run_seconds(doubled, found, measured), 2 * whole)


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.v100_days and name.startswith("ldm")])
def test_v100_days_are_about_the_papers(name):
    published = PUBLISHED[name]
    days = v100_days(get_recipe(name, [f"train.steps={published.steps}"] if published.steps else []))
    assert 0.5 < days / published.v100_days < 2
