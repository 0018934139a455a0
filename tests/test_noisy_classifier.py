"""The classifier of noisy latents: against CLIP's pooling, the paper's size and Bayes' rule; what it refuses to guide; its folder."""

import math

import pytest
import torch
import torch.nn.functional as F

from latentworks.checkpoints.convert import open_model, write_model
from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import IdentityConfig, build_first_stage
from latentworks.nn.attention import AttentionPool
from latentworks.noisy_classifier import ClassifierNet, NoisyClassifier, NoisyClassifierConfig
from latentworks.objectives.classifier import ClassifierObjective
from latentworks.objectives.diffusion import BUCKETS
from latentworks.pipeline import load_model
from latentworks.preparation import RunRequest, prepare
from latentworks.recipe import build_model
from latentworks.unet import UNetConfig
from toys import ae, classifier, diffusion_model, first_stage_folder, image_folder, lw

TINY = UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=16, groups=4)


def tiny(pool="attention", process=None):
    """Two classes of 4 x 4 grey images, with no weight at zero."""
    torch.manual_seed(0)
    config = NoisyClassifierConfig(unet=TINY, pool=pool, classes=2, names=("dark", "light"))
    first_stage = build_first_stage(IdentityConfig(in_channels=1))
    model = NoisyClassifier(first_stage, ClassifierNet(config, 1, 4), process or Process(ProcessConfig()))
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def folder_model():
    """A classifier for 16 px images with all its weights random, as `diffusion_model` has them, and its recipe."""
    guided, recipe = diffusion_model(name="unconditional-64")
    torch.manual_seed(1)
    made = classifier("classifier.classes=3", "classifier.names=[class0, class1, class2]")
    made = made.replace(first_stage=recipe.first_stage.model_dump())
    model = build_model(made)
    model.first_stage.load_state_dict(guided.first_stage.state_dict())
    return model.eval(), made


def test_pooling_is_clips():
    """Against PyTorch's own attention, called as CLIP's AttentionPool2d does."""
    torch.manual_seed(0)
    pool, x = AttentionPool(12, 3, 4, 5), torch.randn(2, 12, 4, 4)
    tokens = x.flatten(2).permute(2, 0, 1)  # l b c
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positions.t()[:, None]
    expected, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 12, 3, pool.qkv.weight[..., 0], pool.qkv.bias, None, None, False, 0.0,
        pool.proj_out.weight[..., 0], pool.proj_out.bias,
    )  # fmt: skip
    torch.testing.assert_close(pool(x), expected[0])
    with pytest.raises(ValueError, match="made for 4x4 features, not 4x8"):
        pool(torch.randn(2, 12, 4, 8))


def test_it_is_as_large_as_the_papers():
    """LDM-8-G: 395.0 M + 111.6 M are the 506 M of Table 3; the net is the encoder half of the model's own UNet, with 1,000 classes."""
    unet = UNetConfig(channels=256, multipliers=(1, 2, 4), attention=(4, 2, 1), heads=1)
    with torch.device("meta"):
        net = ClassifierNet(NoisyClassifierConfig(unet=unet, classes=1000), 4, 32)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 111.6


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_log_prob_is_a_distribution_with_a_gradient_of_each_image_alone(pool):
    model = tiny(pool)
    x, t = torch.randn(3, 1, 4, 4, requires_grad=True), torch.tensor([0, 500, 999])
    both = torch.stack([model.log_prob(x, t, torch.full((3,), label)) for label in (0, 1)])
    torch.testing.assert_close(both.exp().sum(0), torch.ones(3))
    (together,) = torch.autograd.grad(both[1].sum(), x)
    alone = x[1:2].detach().requires_grad_()
    (by_itself,) = torch.autograd.grad(model.log_prob(alone, t[1:2], torch.tensor([1])).sum(), alone)
    torch.testing.assert_close(together[1:2], by_itself)
    assert bool(together.abs().sum((1, 2, 3)).min() > 0)
    assert model.index("light") == 1
    with pytest.raises(ValueError, match=r"label: 2 is not a class of this classifier: use 0 to 1"):
        model.log_prob(x, t, torch.tensor([0, 2, 1]))
    with pytest.raises(ValueError, match=r"did you mean 'light'\?"):
        model.index("lite")


def test_mean_pooling_takes_any_size():
    assert tiny("mean").logits(torch.randn(2, 1, 8, 4), torch.tensor([1, 2])).shape == (2, 2)


def bayes(model, x_t, t):
    """Logits of the classes -1 and +1, all pixels alike: 2 alpha sum(x_t) / sigma^2 apart."""
    alpha, sigma = model.process.at(t)
    return torch.cat([torch.zeros(len(x_t), 1), (2 * alpha / sigma**2 * x_t).sum((1, 2, 3))[:, None]], dim=1)


def right_by_bayes(process, low, high):
    """How often the likelier class is the right one, of 4 x 4 pixels: Phi(4 alpha / sigma), over a range of steps."""
    ratio = 4 * process.alpha[low:high] / process.sigma[low:high]
    return float(0.5 * (1 + torch.erf(ratio / math.sqrt(2))).mean())


def test_the_objective_noises_as_the_process_says(monkeypatch):
    """With the ideal classifier in the net's place, accuracy is what Bayes' rule says, at each range of steps."""
    process = Process(ProcessConfig(beta_start=0.01, beta_end=0.5, T=200))
    model, n = tiny(process=process), 2000
    monkeypatch.setattr(model.net, "forward", lambda x_t, t: bayes(model, x_t, t))
    objective = ClassifierObjective(model)
    label = torch.arange(n) % 2
    batch = {"index": torch.arange(n), "latent": (2.0 * label - 1)[:, None, None, None].expand(n, 1, 4, 4), "label": label}
    (loss,) = objective.losses(batch, 0)
    assert loss.trains == ("model",)
    assert float(loss.log["accuracy"]) == pytest.approx(right_by_bayes(process, 0, 200), abs=0.03)
    figures = objective.held_out([{key: value[i::2] for key, value in batch.items()} for i in range(2)])
    for bucket in range(BUCKETS):
        low = bucket * 200 // BUCKETS
        assert figures[f"accuracy_t{low}"] == pytest.approx(right_by_bayes(process, low, low + 200 // BUCKETS), abs=0.035)
    for key in ("loss", "accuracy"):
        assert figures[key] == pytest.approx(sum(v for k, v in figures.items() if k.startswith(f"{key}_t")) / BUCKETS)
    assert figures["loss_t180"] == pytest.approx(math.log(2), abs=0.02), "nothing is left to see"


def test_a_loss_does_not_depend_on_batch_or_order():
    objective, n = ClassifierObjective(tiny(), seed=3), 4
    batch = {"index": torch.arange(n), "latent": torch.randn(n, 1, 4, 4), "label": torch.tensor([0, 1, 1, 0])}
    parts = [{key: value[rows] for key, value in batch.items()} for rows in ([2, 0], [3, 1])]
    whole, halves = next(objective.losses(batch, 5)), [next(objective.losses(part, 5)) for part in parts]
    assert float(whole.value) == pytest.approx(sum(float(half.value) for half in halves) / 2, rel=1e-5)
    assert float(next(objective.losses(batch, 6)).value) != pytest.approx(float(whole.value), rel=1e-4)


def test_it_knows_its_first_stage_and_its_process():
    model, recipe = folder_model()
    guided, _ = diffusion_model(name="unconditional-64")
    first_stage, process = guided.first_stage, recipe.process
    model.check(first_stage, Process(process))
    model.check(first_stage, Process(process.replace(prediction="eps")))  # x_t is the same
    with torch.no_grad():
        for parameter in first_stage.parameters():
            parameter.copy_(parameter.half())
    model.check(first_stage, Process(process))  # as a model folder may keep it
    for change, line in (
        ({"T": 500}, r"noise of another process \(T 1000 instead of 500\)"),
        ({"beta_end": 0.02}, r"noise of another process \(beta_end 0.0195 instead of 0.02\)"),
        ({"schedule": "cosine"}, r"noise of another process \(schedule scaled_linear instead of cosine\)"),
    ):
        with pytest.raises(ValueError, match=line):
            model.check(first_stage, Process(process.replace(**change)))
    for stranger in (diffusion_model(name="unconditional-64", statistics=(0.1, 0.31))[0].first_stage, build_first_stage(ae().first_stage)):
        with pytest.raises(ValueError, match="latent space of another first stage"):
            model.check(stranger, Process(process))
    with torch.no_grad():
        next(first_stage.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match="latent space of another first stage"):
        model.check(first_stage, Process(process))


def test_a_model_folder_comes_back_and_is_nothing_else(tmp_path, monkeypatch, capsys):
    model, recipe = folder_model()
    save_folder(tmp_path / "model", model, recipe)
    again, recipe_again = load_folder(tmp_path / "model")
    assert recipe_again == recipe
    ours, theirs = model.state_dict(), again.state_dict()
    assert [key for key in ours | theirs if not torch.equal(ours[key], theirs[key])] == []
    with pytest.raises(ValueError, match=r"is a classifier of noisy latents \(class-64-classifier\): it cannot be sampled"):
        load_model(tmp_path / "model")
    with pytest.raises(ValueError, match="layout: diffusers has no place for a classifier"):
        write_model(open_model(str(tmp_path / "model")), tmp_path / "out", "diffusers")
    code, out, _ = lw(monkeypatch, capsys, "info", tmp_path / "model")
    assert code == 0
    assert "parameters, net: " in out
    assert "classification: " in out
    data = image_folder(tmp_path / "data", classes=3)
    code, _, err = lw(monkeypatch, capsys, "evaluate", tmp_path / "model", "--data", data)
    assert (code, err.count("\n")) == (2, 1)
    assert "is a classifier, which draws nothing" in err


@pytest.fixture
def guided(tmp_path):
    """A diffusion model of three classes."""
    classes = ("conditioners.0.classes=3", "conditioners.0.names=[class0, class1, class2]")
    save_folder(tmp_path / "guided", *diffusion_model(*classes, name="class-64"))
    return tmp_path / "guided"


def test_the_model_it_guides_completes_the_recipe(tmp_path, guided):
    data = image_folder(tmp_path / "data", classes=3)
    prepared = prepare(RunRequest(classifier("process.T=500"), data, tmp_path / "run", first_stage=guided))
    model, recipe = load_folder(guided)
    assert prepared.recipe.process == recipe.process
    assert prepared.recipe.first_stage == recipe.first_stage
    assert prepared.recipe.classifier.names == ("class0", "class1", "class2")
    assert prepared.latents is not None
    prepared.model.check(model.first_stage, model.process)


def test_fine_tuning_starts_from_the_same_weights(tmp_path, guided):
    model, recipe = folder_model()
    save_folder(tmp_path / "before", model, recipe)
    data = image_folder(tmp_path / "data", classes=3)
    prepared = prepare(RunRequest(classifier(), data, tmp_path / "run", from_model=tmp_path / "before"))
    ours, theirs = prepared.model.state_dict(), model.state_dict()
    assert [key for key in ours | theirs if not torch.equal(ours[key], theirs[key])] == []


REFUSED = {
    "nothing named": ({}, 3, "--first-stage: class-64-classifier guides a diffusion model: train one and name its run folder"),
    "a first stage": ({"first_stage": "stage"}, 3, "stage is a first stage alone, which knows no noise: name the diffusion model"),
    "no classes": ({"first_stage": "guided"}, 0, "has no classes: give one sub-folder for each of two or more classes"),
    "other classes": ({"first_stage": "guided"}, 4, r"its classes are not those of .*guided \(class3\): name the sub-folders alike"),
    "from another kind": ({"from_model": "guided"}, 3, "--from: class-64 is a latent_diffusion model, but another kind is to be trained"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(case, tmp_path, guided):
    request, classes, line = REFUSED[case]
    first_stage_folder(tmp_path / "stage")
    data = image_folder(tmp_path / "data", classes=classes)
    with pytest.raises(ValueError, match=line) as error:
        prepare(RunRequest(classifier(), data, tmp_path / "run", **{key: tmp_path / name for key, name in request.items()}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
