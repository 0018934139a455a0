"""What the judge is asked and what follows from its answers, in closed form; a tiny net from training to a table of figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import conditions  # noqa: E402
import judges  # noqa: E402
from conditions import Bench, judge_layout, judge_map, judge_text, measure  # noqa: E402
from judges import Training, boxed, confusion, empty_box, iou, scenes  # noqa: E402
from judging import ENOUGH, Judge, centres, main_object, parse, related, within  # noqa: E402

from latentworks.conditioners import LayoutConfig  # noqa: E402
from latentworks.conditioners.layout import LayoutConditioner  # noqa: E402
from latentworks.data.scene_materials import materials  # noqa: E402
from latentworks.data.scene_words import CATEGORIES, RELATIONS, caption  # noqa: E402
from latentworks.data.scenes import never_together  # noqa: E402
from latentworks.diffusion.process import Process, ProcessConfig  # noqa: E402
from latentworks.first_stage import KLConfig, build_first_stage  # noqa: E402
from latentworks.model import LatentDiffusion  # noqa: E402
from latentworks.pipeline import Pipeline  # noqa: E402
from latentworks.recipe import SamplingDefaults  # noqa: E402
from latentworks.request import SampleRequest  # noqa: E402
from latentworks.unet import UNet, UNetConfig  # noqa: E402


@pytest.fixture(scope="module")
def real():
    return list(scenes(materials(128)["held_out"], 9, 0, 10))


class Perfect:
    """A judge that knows the scenes."""

    def __init__(self, real):
        self.real = real

    def label(self, images):
        return [scene.labels for scene in self.real]


def test_captions_are_understood_as_they_are_made():
    for k, relation in enumerate(RELATIONS):
        for i in range(len(CATEGORIES)):
            kinds = [i, (i + 7 + k) % 48, (i + 20) % 48][: 2 + i % 2]
            said = parse(caption([(CATEGORIES[kind], 1 + (i + kind) % 4) for kind in kinds], relation))
            assert said == (tuple(kinds), relation)
    with pytest.raises(ValueError, match="names no relation: left of, right of, above, below"):
        parse("a cat beside a dog")
    with pytest.raises(ValueError, match="'unicorn', which is no category"):
        parse("a unicorn left of a dog")


def test_a_box_holds_what_fills_it():
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 8:28] = 5
    assert within(labels, (8.0, 10.0, 28.0, 20.0)) == {4}
    assert within(labels, (7.0, 8.0, 30.0, 22.0)) == {4}, "a little larger"
    assert within(labels, (0.0, 0.0, 40.0, 40.0)) == set(), "much larger"
    assert within(labels, (0.0, 0.0, 8.0, 10.0)) == set(), "beside it"
    assert within(labels, (8.0, 5.0, 18.0, 14.0)) == set(), "less than half of the box"
    labels[10:20, 18:28] = 7
    assert within(labels, (8.0, 10.0, 28.0, 20.0)) == {4, 6}
    labels[10:20, 8:28] = 0
    labels[[10, 19], [8, 27]] = 5
    assert within(labels, (8.0, 10.0, 28.0, 20.0)) == set(), "two specks"
    assert main_object(labels) is None
    labels[:5, :20], labels[5:10, :21] = 3, 9
    assert main_object(labels) == 8


def test_presence_and_relations_follow_from_a_label_map():
    labels = np.zeros((100, 100), np.uint8)
    labels[10:20, 5:15] = 3
    labels[50:60, 70:90] = 7
    labels[0, : int(ENOUGH * labels.size) - 1] = 9
    places = centres(labels)
    assert places == {2: (0.095, 0.145), 6: (0.795, 0.545)}
    for relation in RELATIONS:
        said = parse(caption([(CATEGORIES[2], 1), (CATEGORIES[6], 1)], relation))
        assert related(said, places) == (relation.words in ("left of", "above"))


def test_scenes_are_asked_about_as_they_are(real):
    for scene in real:
        for (x0, y0, x1, y1), kind in zip(scene.boxes, scene.kinds, strict=True):
            inside = scene.labels[int(y0) : int(y1), int(x0) : int(x1)] == kind + 1
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        said = parse(scene.caption)
        assert set(said.kinds) == set(scene.kinds)
        assert related(said, centres(scene.labels))
        box = empty_box(scene, np.random.default_rng(0))
        assert box is None or (scene.labels[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] > 0).mean() < 0.1


def test_figures_in_closed_form(real):
    counts = confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert counts[:2, :2].tolist() == [[1, 1], [0, 2]]
    assert iou(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)
    images = [scene.image for scene in real]
    layout, text = judge_layout(Perfect(real), images, real), judge_text(Perfect(real), images, real)
    strange = [kind for scene in real for kind in scene.kinds if any(never_together(kind, other) for other in scene.kinds)]
    assert layout["recognised"] == layout["familiar pairs"] == 1
    assert (layout["new pairs"], layout["boxes of new pairs"]) == (1.0 if strange else None, len(strange))
    assert text == {"present": 1, "all present": 1, "relation right": 1, "relations": 10}
    assert judge_map(Perfect(real), images, real) == {"mIoU": 1, "pixels right": 1}
    others = [*real[1:], real[0]]
    assert judge_text(Perfect(others), images, real)["present"] < 0.5
    assert judge_map(Perfect(others), images, real)["mIoU"] < 0.3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A second's training, saved and loaded."""
    folder = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROUND", 2), ("BATCH", 2), ("FOLDER", folder)):
            patch.setattr(judges, name, value)
        training = Training(minutes=0.02)
        said = list(training.run())
        training.save()
    return training, said, Judge(folder)


def test_training_composes_and_learns_and_keeps_its_time(trained):
    training, said, judge = trained
    assert len(said) == training.steps > 1
    assert training.pool.rounds >= 2
    assert 1.2 <= training.composing + training.learning < 4
    for mine, theirs in zip(training.net.parameters(), judge.net.parameters(), strict=True):
        assert torch.isfinite(mine).all()
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_judge_labels_by_shape_and_kind(trained):
    """Background where the shape says so, else the likeliest category, as large as the image."""
    judge = trained[2]
    x = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        shape, kind = judge.net(x)
        labels = judge.net.label(x)
    assert (shape.shape, kind.shape, labels.shape) == ((2, 32, 48), (2, 48, 8, 12), (2, 32, 48))
    assert torch.equal(labels > 0, shape > 0)
    assert labels.max() <= 48
    with pytest.raises(ValueError, match="holds no judge: train it with"):
        Judge(BENCHMARKS)
    images = [np.full((128, 128, 3), value, np.uint8) for value in (0, 90, 200)]
    assert len(list(judge.classify(images))) == 3


def tiny_layout_model():
    names = tuple(category.name for category in CATEGORIES[:24])
    config = LayoutConfig(classes=24, names=names, width=8, layers=1, heads=1, head_channels=8, length=32, vocabulary=1024, dropout=0.1)
    first_stage = build_first_stage(KLConfig(channels=8, multipliers=(1, 1, 1, 1), blocks=1, latent_channels=2, groups=4))
    first_stage.set_statistics(torch.zeros(2), torch.ones(()))
    conditioner = LayoutConditioner(config)
    unet = UNet(UNetConfig(channels=8, multipliers=(1,), blocks=1, attention=(1,), head_channels=8, groups=4), 2, conditioner.gives)
    return LatentDiffusion(first_stage, unet, Process(ProcessConfig()), [conditioner])


def test_a_benchmark_runs_from_conditions_to_figures(trained):
    torch.manual_seed(0)
    pipeline = Pipeline(tiny_layout_model(), SamplingDefaults(steps=2), size=128)
    bench = Bench("layout", trained[2], 128, n=3, reference=3)
    rows = list(measure(bench, pipeline, SampleRequest(steps=2, seed=5), [1.0, 2.0]))
    assert [row["images"] for row in rows] == ["real", "through the first stage", "drawn, guidance 1", "drawn, guidance 2"]
    assert all(0 <= row["recognised"] <= 1 for row in rows)
    assert all(row["distance"] > rows[0]["distance"] for row in rows[1:])
    with pytest.raises(ValueError, match="layout: the model draws 64 pixels, but its judge knows 128"):
        Bench("layout", trained[2], 64, n=3, reference=3)
    with pytest.raises(ValueError, match="map: needs a model that takes segmentation alone, this one takes boxes"):
        conditions.check("map", pipeline)


def test_masks_become_boxes_of_what_is_seen():
    from latentworks.data.scenes import Placed, Scene

    mask = np.zeros((32, 32), bool)
    mask[3:9, 10:21] = True
    scene = boxed(Scene(np.zeros((32, 32, 3), np.uint8), [Placed(4, mask)], "a cat left of a dog"))
    assert scene.boxes == [(10.0, 3.0, 21.0, 9.0)]
    assert (scene.labels == 5).sum() == 66


def test_scales_measured_earlier_stay_with_the_same_weights_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(conditions, "RESULTS", tmp_path)
    facts = {"model": "m", "weights": "0", "n": 2}
    assert conditions.earlier("map", facts) == []
    rows = [{"images": name} for name in ("drawn, guidance 10", "drawn, guidance 2", "real")]
    (tmp_path / "conditions_map.json").write_text(json.dumps({**facts, "date": "2026-11-26", "rows": rows}))
    assert [row["images"] for row in sorted(conditions.earlier("map", facts), key=conditions.order)] == [
        "real",
        "drawn, guidance 2",
        "drawn, guidance 10",
    ]
    assert conditions.earlier("map", {**facts, "weights": "1"}) == []
