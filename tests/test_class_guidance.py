"""Guidance by a classifier in a request: what it adds to a step, of which models, and what is refused before anything is drawn."""

import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.class_guidance import classifier_of
from latentworks.pipeline import load, load_model
from latentworks.random import randn_like_per_image
from latentworks.recipe import build_model
from latentworks.request import SampleRequest, settings_of
from latentworks.types import Cond
from toys import ae, classifier, diffusion_model, lw

CLASSES = ("conditioners.0.classes=3", "conditioners.0.names=[class0, class1, class2]")


def classifier_folder(path, *overrides):
    """Of random weights, in the latent space of `diffusion_model`. The folder."""
    made = classifier("classifier.classes=3", "classifier.names=[class0, class1, class2]", *overrides)
    made = made.replace(first_stage=ae().first_stage.model_dump())
    torch.manual_seed(1)
    model = build_model(made)
    model.first_stage.load_state_dict(diffusion_model(name="unconditional-64")[0].first_stage.state_dict())
    save_folder(path, model, made)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An unconditional model, one of classes, and a classifier for both."""
    path = tmp_path_factory.mktemp("models")
    plain, classes = diffusion_model(name="unconditional-64"), diffusion_model(*CLASSES, name="class-64")
    classes[0].first_stage.load_state_dict(plain[0].first_stage.state_dict())
    save_folder(path / "plain", *plain)
    save_folder(path / "classes", *classes)
    classifier_folder(path / "classifier")
    return path


def request(folders, **settings):
    given = {"label": "class1", "classifier": folders / "classifier", "classifier_scale": 3.0, "n": 2, "seed": 5, **settings}
    return SampleRequest.parse({key: value for key, value in given.items() if value is not None})


def test_a_step_moves_along_the_gradient(folders):
    """Against Bayes' rule written out: x0 + scale sigma^2 / alpha grad log p(y | x_t), for a model that knows no classes."""
    pipeline, asked = load(folders / "plain"), request(folders)
    step = next(iter(pipeline.stream(asked)))
    x_t = randn_like_per_image("start", [5, 6])(torch.empty(2, 2, 8, 8)).requires_grad_()
    t = torch.full((2,), pipeline.model.process.timesteps(2, "trailing")[0])
    net, _ = load_folder(folders / "classifier")
    (grad,) = torch.autograd.grad(net.log_prob(x_t, t, torch.tensor([1, 1])).sum(), x_t)
    alpha, sigma = pipeline.model.process.at(t)
    expected = pipeline.model.predict(x_t, t, Cond()) + 3.0 * sigma**2 / alpha * grad
    torch.testing.assert_close(step.x0, expected.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["plain", "classes"])
def test_scale_0_is_no_guidance_and_an_image_is_its_own(model, folders):
    pipeline = load(folders / model)
    alone = {"classifier": None, "classifier_scale": None, "label": None if model == "plain" else "class1"}

    def drawn(**settings):
        return torch.stack([step.x for step in pipeline.stream(request(folders, **settings))])

    assert torch.equal(drawn(classifier_scale=0.0), drawn(**alone))
    both = drawn()
    assert not torch.allclose(both, drawn(**alone))
    torch.testing.assert_close(both[:, 1:], drawn(n=1, seed=6), rtol=1e-4, atol=1e-4)
    if model == "classes":
        assert not torch.allclose(drawn(guidance=2.0), both), "both guidances together"


def test_a_batch_may_hold_several_classes(folders):
    pipeline = load(folders / "classes")
    batch = {"index": torch.arange(2), "label": torch.tensor([0, 2])}
    asked = request(folders, label=None, n=1)
    x = [step.x for step in pipeline.draw_batch(batch, asked) if hasattr(step, "x")][-1]
    for i, label in enumerate(("class0", "class2")):
        alone = list(pipeline.stream(request(folders, label=label, n=1, seed=5 + i)))[-1].x
        torch.testing.assert_close(x[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="label: a classifier guides towards a class"):
        list(pipeline.draw_batch({**batch, "label": torch.tensor([0, 3])}, asked))


def test_the_command_line_draws_and_remembers(folders, tmp_path, monkeypatch, capsys):
    arguments = ("--label", "class2", "--classifier", folders / "classifier", "--classifier-scale", 2, "-o", tmp_path)
    code, out, err = lw(monkeypatch, capsys, "sample", folders / "plain", *arguments)
    assert (code, err) == (0, "")
    with Image.open(out.strip()) as image:
        again = settings_of(image)
    assert (str(again.classifier), again.classifier_scale, again.label) == ("classifier", 2.0, "class2")


REFUSED = {
    "no class": ("plain", {"label": None}, "label: a classifier guides towards a class: give one"),
    "unknown class": ("plain", {"label": "clas1"}, "'clas1' is not a class of this model: did you mean 'class1'"),
    "scale alone": ("plain", {"classifier": None, "label": None}, "classifier_scale: it belongs to a classifier"),
    "class alone": ("plain", {"classifier": None, "classifier_scale": None}, "label: this model does not take a class"),
    "another kind": ("plain", {"classifier": "classes"}, r"classifier: .*classes is a latent diffusion model \(class-64\): name a run"),
    "nothing there": ("plain", {"classifier": "nothing"}, "no model '.*nothing': no such folder"),
    "other classes": ("others", {}, r"classifier: its classes are not those of the model \(class2, class9\)"),
    "another process": ("short", {}, r"noise of another process \(T 1000 instead of 500\)"),
    "another first stage": ("shifted", {}, "latent space of another first stage"),
    "another size": ("plain", {"size": (16, 32)}, "classifier: it was trained on latents of 8x8, not 8x16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_guide_is_refused_before_anything_is_drawn(case, folders, tmp_path):
    model, settings, line = REFUSED[case]
    strange = {
        "others": lambda: diffusion_model(CLASSES[0], "conditioners.0.names=[class0, class1, class9]", name="class-64"),
        "short": lambda: diffusion_model("process.T=500", name="unconditional-64"),
        "shifted": lambda: diffusion_model(name="unconditional-64", statistics=(0.1, 0.4)),
    }
    if model in strange:
        other, recipe = strange[model]()
        if model == "others":
            other.first_stage.load_state_dict(load_model(folders / "plain").first_stage.state_dict())
        save_folder(tmp_path / model, other, recipe)
    if isinstance(settings.get("classifier"), str):
        settings = {**settings, "classifier": folders / settings["classifier"]}
    pipeline = load((tmp_path if model in strange else folders) / model)
    with pytest.raises(ValueError, match=line) as error:
        pipeline.resolve(request(folders, **settings))
    assert "\n" not in str(error.value)


def test_mean_pooling_guides_any_size(folders, tmp_path):
    classifier_folder(tmp_path / "classifier", "classifier.pool=mean")
    asked = request(folders, classifier=tmp_path / "classifier", size=(16, 32), n=1)
    assert [image.size for image in load(folders / "plain")(**asked.model_dump(exclude_none=True, exclude={"prompt"}))] == [(32, 16)]


def test_a_classifier_is_loaded_once_until_it_is_trained_on(folders, tmp_path):
    classifier_folder(tmp_path / "classifier")
    model, asked = load_model(folders / "plain"), request(folders, classifier=tmp_path / "classifier")
    first = classifier_of(model, asked)
    assert classifier_of(model, asked) is first
    classifier_folder(tmp_path / "classifier")
    assert classifier_of(model, asked) is not first
