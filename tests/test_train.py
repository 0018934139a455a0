"""The training loop: accumulation equals a larger batch, random numbers are its own, averages and learning rates as the formulas say."""

import pytest
import torch

from latentworks.objectives.base import Loss, Objective
from latentworks.preparation import RunRequest, prepare
from latentworks.train import State, TrainConfig, learning_rate, make_accelerator, train
from toys import ae, first_stage_folder, image_folder, ldm


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", captions=True)


def steps_of(recipe, data, tmp_path, between=lambda: None, **request):
    """Train with nothing around it: the logs of all steps, and the state at the end."""
    prepared = prepare(RunRequest(recipe, data, tmp_path / "run", **request))
    if prepared.latents is not None:
        list(prepared.latents.fill())
    source = prepared.latents or prepared.images
    logs = []
    for stepped in train(prepared.objective, source, recipe.train, accelerator=make_accelerator(recipe.train)):
        logs.append({key: float(value) for key, value in stepped.log.items()})
        between()
    return logs, {key: value.clone() for key, value in stepped.state.tensors().items()}


@pytest.mark.parametrize("kind", ["first stage", "text"])
def test_accumulation_equals_a_larger_batch(kind, data, tmp_path):
    exact = ["train.precision=float32", "train.steps=3", "train.lr=1e-4"]
    sizes = (["train.batch=8"], ["train.batch=4", "train.accumulate=2"])
    if kind == "text":
        request = {"first_stage": first_stage_folder(tmp_path / "stage")}
        whole, parts = (ldm(*exact, *size, "conditioners.0.dropout=0.5") for size in sizes)
    else:  # the discriminator trains, but has no weight: the adaptive one would be that of the micro-batch
        request = {}
        gan = ["objective.adversarial_weight=1e-12", "objective.discriminator_start=0", "objective.discriminator_warmup=0"]
        whole, parts = (ae(*exact, *size, *gan) for size in sizes)
    (logs, tensors), (other_logs, other) = (steps_of(recipe, data, tmp_path, **request) for recipe in (whole, parts))
    assert ("discriminator" in logs[0]) == (kind == "first stage")
    for ours, theirs in zip(logs, other_logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for kind in ("exp_avg", "module."):  # gradients; and weights, of which Adam moves some by rounding noise alone
        ours, theirs = (
            torch.cat([v.float().flatten().nan_to_num() for k, v in t.items() if kind in k and "sq" not in k]) for t in (tensors, other)
        )
        assert float((ours - theirs).norm()) < 1e-4 * float(ours.norm())
        assert float(((ours - theirs).abs() > 1e-5).float().mean()) < 0.01


def test_the_random_numbers_of_a_run_are_its_own(data, tmp_path):
    recipe = ldm("unet.dropout=0.3", "train.steps=4")
    stage = first_stage_folder(tmp_path / "stage")
    before = torch.get_rng_state()
    logs, tensors = steps_of(recipe, data, tmp_path, first_stage=stage)
    assert torch.equal(torch.get_rng_state(), before), "training and preparing leave the world's generator as it was"
    other_logs, other = steps_of(recipe, data, tmp_path, between=lambda: torch.rand(7), first_stage=stage)
    assert logs == other_logs
    assert [key for key in tensors if not torch.equal(tensors[key], other[key])] == []
    assert logs != steps_of(recipe.replace(unet={**recipe.unet.model_dump(), "dropout": 0.0}), data, tmp_path, first_stage=stage)[0]


class Quadratic(Objective):
    """(w - 1)^2, or something that is not finite."""

    best = "loss"
    averaged = ("model",)

    def __init__(self, bad=None):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, 3.0)
        self.modules = {"model": self.model}
        self.bad = bad

    def losses(self, batch, step):
        value = (self.modules["model"](torch.ones(1, 1)) - 1).square().sum()
        if self.bad == "loss":
            value = value * float("nan")
        if self.bad == "gradient":
            value = value + (self.model.weight * 0).sqrt().sum()
        yield Loss(value, ("model",), {"loss": value.detach()})

    def held_out(self, batches):
        return {}


class NoData:
    def indices_for(self, step, batch):
        return list(range(batch))

    def batch(self, indices, step):
        return {"index": torch.tensor(indices)}


def run(objective, **settings):
    config = TrainConfig(batch=1, precision="float32", **settings)
    return train(objective, NoData(), config, accelerator=make_accelerator(config))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(bad):
    objective = Quadratic(bad)
    with pytest.raises(FloatingPointError, match=f"the {bad} of model is not finite at step 0.*try a lower train.lr"):
        next(run(objective))
    assert float(objective.model.weight) == 3.0


def test_the_average_is_the_formula():
    objective, weights = Quadratic(), []
    for stepped in run(objective, steps=5, lr=0.1, ema=0.3, weight_decay=0.0):
        state = stepped.state
        weights.append(objective.model.weight.item())
    average = 3.0
    for n, weight in enumerate(weights, start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    with state.averaged():
        assert objective.model.weight.item() == pytest.approx(average, rel=1e-6)
        assert not objective.model.training
    assert objective.model.weight.item() == weights[-1], "not one bit is lost by looking"
    assert objective.model.training


def test_clipping_and_the_first_adam_step():
    objective = Quadratic()
    (stepped,) = run(objective, steps=1, lr=0.1, optimiser="adam", clip=1.0)
    assert float(stepped.log["grad_norm/model"]) == pytest.approx(4.0), "before clipping"
    assert objective.model.weight.item() == pytest.approx(2.9)
    (moment,) = (value for key, value in stepped.state.tensors().items() if key.endswith("exp_avg"))
    assert float(moment) == pytest.approx(0.1), "of the gradient clipped to 1"


def test_the_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=100, lr=1.0, warmup=9, decay="cosine", final_lr=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 50) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(config, 100) == pytest.approx(0.1)
    assert learning_rate(config.replace(decay="linear"), 50) == pytest.approx(0.55)
    assert learning_rate(config.replace(decay="constant"), 99) == 1.0


def test_a_state_of_another_model_is_refused():
    tensors = State(Quadratic(), TrainConfig(ema=0.9)).tensors()
    assert sorted(tensors) == ["average.model.0", "module.model.weight", "step"]
    other = Quadratic()
    other.modules["model"] = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="the saved state holds another model"):
        State(other, TrainConfig()).restore(tensors)
    without = {key: value for key, value in tensors.items() if not key.startswith("average")}
    with pytest.raises(ValueError, match="the saved state has no averages of model"):
        State(Quadratic(), TrainConfig(ema=0.9)).restore(without)


def test_two_runs_of_one_program_may_differ_in_precision():
    assert make_accelerator(TrainConfig(precision="bf16")).mixed_precision == "bf16"
    assert make_accelerator(TrainConfig(precision="float32")).mixed_precision == "no"
