"""`lw evaluate` end to end on tiny models: which figures there are, what they are taken from, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.cli import main
from latentworks.conditioners import LabelConfig, TextConfig, train_tokenizer
from latentworks.data.transforms import from_tensor
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig, build_first_stage
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.evaluate import FEW, evaluate_first_stage, evaluate_model
from latentworks.metrics.measurement import Evaluation, Measurement, Progress
from latentworks.metrics.paired import psnr, psnr_non_white
from latentworks.metrics.reference import conditions, reference_images
from latentworks.pipeline import Pipeline
from latentworks.recipe import build_model
from latentworks.recipes import get_recipe
from latentworks.request import SampleRequest

N = 12
SMALL = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "latent_channels": 3, "mid_attention": "none"}


class Means:
    """A feature network that is quick and easy to check: each channel's mean and spread."""

    name, hash, dim, resize = "means", "0123456789abcdef", 6, "none"

    def embed(self, images):
        arrays = [np.asarray(image, np.float32) for image in images]
        return np.stack([np.concatenate([a.mean((0, 1)), a.std((0, 1))]) for a in arrays])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def folder(tmp_path):
    return shapes(tmp_path)


def shapes(tmp_path):
    """Twelve images in two classes, with captions, on white."""
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "shapes" / "ab"[i % 3 > 0] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((24, 20, 3), 255, np.uint8)
        image[4 + i % 3 : 15, 5 : 8 + i] = rng.integers(0, 256, 3)
        Image.fromarray(image).save(path)
        path.with_suffix(".txt").write_text(f"shape {i}")
    return tmp_path / "shapes"


def first_stage_recipe(config, **data):
    recipe = get_recipe("openmoji-64-ae")
    return recipe.replace(first_stage=config.model_dump(), data={"size": 16, "crop_size": 8, "crop": "random", "flip": True, **data})


def diffusion_recipe(conditioners=(), first_stage=None, **data):
    small = {"channels": 32, "multipliers": (1,), "blocks": 1, "attention": (), "head_channels": 16}
    recipe = get_recipe("openmoji-64").replace(data={"size": 16, **data}, unet=small, conditioners=[c.model_dump() for c in conditioners])
    return recipe.replace(first_stage=(first_stage or KLConfig(**SMALL)).model_dump(), sampling={"steps": 2, "guidance": 2.0})


TEXT = TextConfig(width=32, layers=1, heads=2, head_channels=8, length=6, vocabulary=300)


def build(recipe):
    assets = {0: {"tokenizer.json": train_tokenizer([f"shape {i}" for i in range(N)], 300).to_str()}}
    model = build_model(recipe, assets)
    first_stage = getattr(model, "first_stage", model)
    first_stage.set_statistics(torch.zeros(first_stage.channels), torch.ones(()))
    return model.eval()


def pipeline(recipe):
    return Pipeline(build(recipe), recipe.sampling, recipe.data.out_size)


def run(events) -> Evaluation:
    *progress, evaluation = events
    assert all(isinstance(p, Progress) and 0 < p.done <= p.total for p in progress)
    return evaluation


def values(evaluation: Evaluation) -> dict[str, Measurement]:
    named = {measurement.name: measurement for measurement in evaluation.measurements}
    assert len(named) == len(evaluation.measurements)
    return named


@pytest.mark.parametrize("config", [KLConfig(**SMALL), VQConfig(**SMALL, codes=16)])
def test_a_first_stage_is_measured_on_whole_images(folder, config):
    recipe = first_stage_recipe(config)
    model, reference = build(recipe), reference_images(folder, recipe, None)
    found = values(run(evaluate_first_stage(model, reference, Means(), batch=5)))
    x = torch.cat([batch["image"] for batch in reference.dataset.batches(N)])
    assert x.shape == (N, 3, 16, 16), "not the 8 px crops of training"
    with torch.no_grad():
        y = model.decode(model.to_latent(model.encode_raw(x))).clamp(-1, 1)
    assert found["PSNR of reconstructions"].value == pytest.approx(float(psnr(y, x).mean()), abs=1e-3)
    a, b = (Means().embed(list(from_tensor(images))) for images in (x, y))
    assert found["Fréchet distance of reconstructions"].value == pytest.approx(frechet_distance(a, b), rel=1e-3)
    assert -1 < found["SSIM of reconstructions"].value < 1
    assert found["PSNR over non-white pixels of reconstructions"].value == pytest.approx(float(psnr_non_white(y, x).mean()), abs=1e-3)
    assert {m.n for m in found.values()} == {N}
    assert found["SSIM of reconstructions"].reference == "the same images: shapes all at 16 px, 12 images"
    if isinstance(config, VQConfig):
        codes = model(x).codes.unique()
        assert found["codebook use"].value == pytest.approx(len(codes) / 16)
        assert 1 <= found["codebook perplexity"].value <= len(codes)
    else:
        assert not any("codebook" in name for name in found)


def test_nothing_is_lost_by_the_identity(folder):
    recipe = first_stage_recipe(IdentityConfig())
    evaluation = run(evaluate_first_stage(build_first_stage(IdentityConfig()), reference_images(folder, recipe, "train"), Means()))
    found = values(evaluation)
    assert found["PSNR of reconstructions"].value == float("inf")
    assert found["SSIM of reconstructions"].value == pytest.approx(1)
    assert found["Fréchet distance of reconstructions"].value == pytest.approx(0, abs=1e-6)


def test_a_text_model_beside_its_first_stage(folder):
    recipe = diffusion_recipe([TEXT])
    pipe, reference = pipeline(recipe), reference_images(folder, recipe, "train")
    request = SampleRequest(n=15, batch=4, seed=3)
    evaluation = run(evaluate_model(pipe, reference, Means(), request, held_out=reference, resamples=4))
    found = values(evaluation)
    assert list(found)[:5] == ["Fréchet distance", "KID", "precision", "recall", "PSNR of reconstructions"]
    assert "Fréchet distance of reconstructions" in found
    distance = found["Fréchet distance"]
    assert (distance.n, distance.seed, distance.network, distance.resize) == (15, 3, "means 01234567", "none")
    assert distance.reference == "shapes train captioned at 16 px, 12 images"
    assert distance.settings == "dpmpp_2m, 2 steps, guidance 2"
    assert distance.interval[0] <= distance.value <= distance.interval[1]
    assert "dpmpp_2m, 2 steps, guidance 2, subsets: 100 of 12" in str(found["KID"])
    assert evaluation.notes == ["12 held-out images are too few to say how near real ones are: 100 are needed"]

    captions = [text for batch in conditions(pipe.model, reference, 15, 3, batch=4) for text in batch["text"]]
    assert sorted(captions[:N]) == sorted(f"shape {i}" for i in range(N))
    assert captions[N:] == captions[:3]
    again = pipe(captions, seed=3, batch=7)
    originals = Means().embed([image for batch in reference.dataset.batches(N) for image in from_tensor(batch["image"])])
    assert distance.value == pytest.approx(frechet_distance(originals, Means().embed(again)), rel=1e-3)


def test_real_held_out_images_are_the_floor(folder, monkeypatch):
    monkeypatch.setattr("latentworks.metrics.evaluate.FLOOR", N)
    recipe = diffusion_recipe(first_stage=IdentityConfig())
    reference = reference_images(folder, recipe, "train")
    found = values(run(evaluate_model(pipeline(recipe), reference, Means(), SampleRequest(n=4), held_out=reference)))
    assert found["Fréchet distance of real held-out images"].value == pytest.approx(0, abs=1e-6)
    assert found["precision of real held-out images"].value == 1
    assert found["KID of real held-out images"].n == N
    assert FEW not in found, "fewer were drawn, not more"
    more = values(run(evaluate_model(pipeline(recipe), reference, Means(), SampleRequest(n=N + 5), held_out=reference)))
    first = values(run(evaluate_model(pipeline(recipe), reference, Means(), SampleRequest(n=N))))["Fréchet distance"]
    assert (more[FEW].value, more[FEW].n) == (pytest.approx(first.value, rel=1e-6), N)
    assert more[FEW].value != more["Fréchet distance"].value


def test_classes_are_drawn_as_often_as_they_are_there(folder):
    recipe = diffusion_recipe([LabelConfig(classes=3, width=32, names=("b", "other", "a"))])
    pipe, reference = pipeline(recipe), reference_images(folder, recipe, "train")
    labels = [label for batch in conditions(pipe.model, reference, 2 * N, 0, batch=5) for label in batch["label"].tolist()]
    assert sorted(labels) == [0] * 16 + [2] * 8, "by name, not by number"
    assert values(run(evaluate_model(pipe, reference, Means(), SampleRequest(n=7, batch=3))))["recall"].n == 7


def test_images_of_many_channels_have_paired_measures_only(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 256, (16, 16, 5), dtype=np.uint8))
    recipe = diffusion_recipe(first_stage=IdentityConfig(in_channels=5), channels=5)
    evaluation = run(evaluate_model(pipeline(recipe), reference_images(tmp_path, recipe, "train"), Means(), SampleRequest(n=4)))
    assert [m.network for m in evaluation.measurements] == [None] * 3
    assert evaluation.notes == ["features are taken from 1 or 3 channels, these images have 5: only paired measures are given"]


def test_damaged_images_are_named(folder):
    (folder / "a" / "00.png").write_bytes(b"no png")
    recipe = first_stage_recipe(IdentityConfig())
    evaluation = run(evaluate_first_stage(build_first_stage(IdentityConfig()), reference_images(folder, recipe, None), Means()))
    assert evaluation.notes == ["damaged images were left out: 1 (a/00.png)"]
    assert evaluation.measurements[0].n == N - 1


def test_what_cannot_be_measured_is_refused(folder, tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    recipe = diffusion_recipe([LabelConfig(classes=2, width=32)])
    with pytest.raises(ValueError, match="this model draws classes, but the folder has none"):
        conditions(build(recipe), reference_images(tmp_path, recipe, None), 4, 0, batch=2)
    with pytest.raises(ValueError, match="n 3 and 12 reference images: give at least 4 of both"):
        run(evaluate_model(pipeline(recipe), reference_images(folder, recipe, None), Means(), SampleRequest(n=3)))


def lw(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lw", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return (stop.value.code or 0, *capsys.readouterr())


@pytest.mark.parametrize("recipe", [first_stage_recipe(VQConfig(**SMALL, codes=16)), diffusion_recipe([TEXT])])
def test_the_command(folder, tmp_path, monkeypatch, capsys, recipe):
    save_folder(tmp_path / "run" / "model", build(recipe), recipe)
    figures = tmp_path / "figures.json"
    code, out, err = lw(monkeypatch, capsys, tmp_path / "run", "--data", folder, "--split", "all", "-n", 4, "--steps", 1, "--json", figures)
    assert (code, err.strip()) == (0, "")
    written = json.loads(figures.read_text())
    assert (written["model"]["name"], written["model"]["kind"]) == (recipe.name, recipe.kind)
    assert str(tmp_path) not in figures.read_text(), "the same on every machine"
    assert out.splitlines() == [str(Measurement(**row)) for row in written["measurements"]]
    distances = [row for row in written["measurements"] if row["name"].startswith("Fréchet")]
    assert len(distances) == (1 if recipe.kind == "first_stage" else 2)
    assert all(row["resize"] == "bicubic to 224" and row["network"].startswith("efficientnet-lite0 ") for row in distances)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "figures.md"], "figures.md: a card's name ends in .json"),
        (["--split", "hold_out"], "--split 'hold_out': did you mean 'held_out'?"),
        (["--sampler", "ddimm"], "sampler: unknown sampler 'ddimm': did you mean 'ddim'?"),
        (["--network", "nowhere.pth"], "no Inception weights at nowhere.pth"),
        (["--split", "held_out"], "has no held_out image"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    recipe = first_stage_recipe(KLConfig(**SMALL))
    save_folder(tmp_path / "model", build(recipe), recipe)
    code, out, err = lw(monkeypatch, capsys, tmp_path / "model", "--data", folder, "--split", "all", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_too_little_memory_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise MemoryError("Unable to allocate 47.7 GiB for an array")

    monkeypatch.setattr("latentworks.metrics.card.read_mapping", full)
    code, out, err = lw(monkeypatch, capsys, "openmoji-64", "--data", tmp_path, "--card", tmp_path / "card.json")
    assert (code, out) == (2, "")
    assert err == "lw: not enough memory: ask for fewer or smaller images at once. Unable to allocate 47.7 GiB for an array\n"
