"""Boxes, maps, small images and holes from files to what is drawn: what fits, what is refused, and pixels that must stay."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.pipeline import Drawn, Pipeline
from latentworks.request import SampleRequest, settings_of
from toys import diffusion_model

BOX = {"x": 0.1, "y": 0.2, "width": 0.4, "height": 0.3, "label": "cat"}
KINDS = {
    "layout": "{kind: layout, classes: 2, names: [cat, dog], width: 16, layers: 1, heads: 2, head_channels: 8, length: 8, vocabulary: 64,"
    " dropout: 0.1}",
    "map": "{kind: segmentation, classes: 3, stages: 1, names: [sky, sea, sand], palette: [[0, 0, 0], [255, 0, 0], [0, 0, 255]]}",
    "small": "{kind: low_res, factor: 4, scale: 2}",
    "hole": "{kind: masked_image, channels: 2}",
}


def model_of(*kinds):
    model, recipe = diffusion_model(f"conditioners=[{', '.join(KINDS[kind] for kind in kinds)}]", name="unconditional-64")
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def pipelines():
    return {name: model_of(name) for name in KINDS} | {"none": model_of(), "layout and map": model_of("layout", "map")}


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8)).save(tmp_path / "x.png")
    hole = np.zeros((9, 14), np.uint8)
    hole[2:6, 3:9] = 255
    Image.fromarray(hole).save(tmp_path / "m.png")
    Image.fromarray(hole[:-1]).save(tmp_path / "short.png")
    Image.fromarray(rng.integers(0, 3, (9, 14), np.uint8)).save(tmp_path / "map.png")
    (tmp_path / "boxes.json").write_text(json.dumps([BOX]))
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


REQUESTS = {
    "layout": lambda files: {"boxes": [BOX]},
    "map": lambda files: {"map": files / "map.png"},
    "small": lambda files: {"upscale": files / "x.png"},
    "hole": lambda files: {"image": files / "x.png", "mask": files / "m.png"},
    "none": lambda files: {"image": files / "x.png"},
    "layout and map": lambda files: {"boxes": [BOX], "map": files / "map.png"},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_pictures_set_the_size_and_an_image_does_not_depend_on_its_batch(pipelines, files, name):
    pipeline, given = pipelines[name], REQUESTS[name](files)
    one, three = (pipeline(**given, n=4, steps=3, seed=2, batch=batch) for batch in (1, 3))
    size = {"layout": (16, 16), "small": (56, 36)}.get(name, (14, 9))
    assert [image.size for image in one] == [size] * 4
    assert max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(one, three, strict=True)) <= 1
    assert len({image.tobytes() for image in one}) == 4
    assert settings_of(one[1]).seed == 3


def test_conditions_matter(pipelines, files):
    def draw(name, **given):
        return np.asarray(pipelines[name](steps=3, **given)[0], int)

    assert np.abs(draw("layout", boxes=[BOX]) - draw("layout", boxes=[{**BOX, "label": 1}])).max() > 0
    assert np.array_equal(draw("layout", boxes=[{**BOX, "label": 0}]), draw("layout", boxes=[BOX]))
    other = Image.fromarray(np.zeros((9, 14), np.uint8))
    assert np.abs(draw("map", map=files / "map.png") - draw("map", map=other)).max() > 0
    assert np.abs(draw("small", upscale=files / "x.png") - draw("small", upscale=Image.new("RGB", (14, 9)))).max() > 0


def test_outside_a_hole_not_a_byte_changes(pipelines, files):
    original, hole = np.asarray(Image.open(files / "x.png")), np.asarray(Image.open(files / "m.png")) > 0
    for image in pipelines["hole"](image=files / "x.png", mask=files / "m.png", n=2, steps=3):
        drawn = np.asarray(image)
        assert np.array_equal(drawn[~hole], original[~hole])
        assert (drawn[hole] != original[hole]).any()


def test_back_projection_makes_what_is_enlarged_agree_with_the_image(pipelines, files):
    small = np.asarray(Image.open(files / "x.png"), float)

    def distance(**given):
        (image,) = pipelines["small"](upscale=files / "x.png", steps=2, **given)
        return np.abs(np.asarray(image.resize((14, 9), Image.Resampling.BICUBIC), float) - small).mean()

    assert distance(back_projection=20) < 0.1 * distance()


def test_strength_says_how_much_of_an_image_is_drawn_anew(pipelines, files):
    pipeline = pipelines["none"]
    counts = [len(list(pipeline.stream(SampleRequest(image=files / "x.png", strength=s, steps=10)))) for s in (0.05, 0.3, 1.0)]
    assert counts == [1, 3, 10]
    first = next(iter(pipeline.stream(SampleRequest(image=files / "x.png", strength=0.1, steps=10))))
    with torch.no_grad():
        z = pipeline.model.encode(torch.zeros(1, 3, 12, 16))
    assert first.x.shape == z.shape
    assert pipeline.resolve(SampleRequest(image=files / "x.png")).strength == 0.6


def test_between_two_seeds(pipelines):
    pipeline = pipelines["none"]
    between = pipeline(seed=3, to_seed=8, n=5, steps=2)
    ends = [pipeline(seed=seed, steps=2)[0] for seed in (3, 8)]
    for drawn, end in ((between[0], ends[0]), (between[-1], ends[1])):
        assert np.abs(np.asarray(drawn, int) - np.asarray(end, int)).max() <= 1
    (again,) = pipeline(**settings_of(between[2]).model_dump(exclude_none=True))
    assert np.abs(np.asarray(again, int) - np.asarray(between[2], int)).max() <= 1


REFUSED = [
    ("layout", {}, "boxes: this model needs boxes: give it (--boxes on the command line)"),
    ("layout", {"boxes": [{**BOX, "label": "cats"}]}, "boxes: 'cats' is not a class of this model: did you mean 'cat'?"),
    ("layout", {"boxes": [{**BOX, "x": 0.8}]}, "boxes: x=0.8 y=0.2 width=0.4 height=0.3 is not within the image"),
    ("layout", {"boxes": [BOX] * 3}, "boxes: 3 in one image, but this model takes 2"),
    ("layout", {"boxes": [{"x": 0.1}]}, "boxes.0.y: is required"),
    ("layout", {"boxes": [BOX], "map": "map.png"}, "map: this model does not take a label map; it takes boxes"),
    ("map", {"map": "x.png"}, "which is no class: this model has 3 classes: 0 sky #000000, 1 sea #ff0000, 2 sand #0000ff"),
    ("map", {"map": "none.png"}, "none.png cannot be read: No such file or directory"),
    ("map", {"map": "map.png", "size": (16, 16)}, "map: it makes 14 x 9 pixels, size makes 16 x 16: they must agree"),
    ("small", {"upscale": "broken.png"}, "upscale: "),
    ("hole", {"image": "x.png"}, "mask: this model needs an image with a hole: give it (--mask on the command line)"),
    ("hole", {"mask": "m.png"}, "mask: it marks the hole of an image: give that too"),
    ("hole", {"image": "x.png", "mask": "short.png"}, "mask: it makes 14 x 8 pixels, image makes 14 x 9: they must agree"),
    ("hole", {"image": "x.png", "mask": "m.png", "strength": 0.5}, "strength: it says how much of an image is drawn anew"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED, ids=[f"{name} {given}" for name, given, _ in REFUSED])
def test_what_does_not_go_together_is_refused(pipelines, files, name, given, message):
    given = {key: files / value if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pipelines[name](**given)
    assert "\n" not in str(error.value)


def test_a_batch_of_data_is_drawn(pipelines):
    batch = {"index": torch.arange(3), "boxes": [[BOX], [], [BOX, BOX]]}
    (drawn,) = [event for event in pipelines["layout"].draw_batch(batch, SampleRequest(steps=2)) if isinstance(event, Drawn)]
    assert drawn.pixels.shape == (3, 16, 16, 3)
    assert [request.seed for request in drawn.requests] == [0, 1, 2]
