"""From a request for a larger image to tiles: the net sees its training size alone, whatever is asked for and however it is guided."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.diffusion.tiling import areas, boxes_within, windows
from latentworks.pipeline import Pipeline
from latentworks.random import randn_like_per_image
from latentworks.request import SampleRequest, settings_of
from latentworks.types import Cond
from toys import diffusion_model

CAT, DOG = ({"x": x, "y": 0.2, "width": 0.3, "height": 0.4, "label": label} for x, label in ((0.05, "cat"), (0.6, "dog")))
LAYOUT = (
    "{kind: layout, classes: 2, names: [cat, dog], width: 16, layers: 1, heads: 2, head_channels: 8, length: 8, vocabulary: 1024,"
    " dropout: 0.1}"
)
TILES = {"steps": 2, "tile": 16, "overlap": 4, "seed": 3}


def model_of(*kinds):
    model, recipe = diffusion_model(f"conditioners=[{', '.join(kinds)}]", name="unconditional-64")
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def of_text():
    model, recipe = diffusion_model()
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def of_boxes():
    return model_of(LAYOUT)


def seen_by(pipeline, monkeypatch):
    """The (x_t, cond) of every call of the net."""
    calls, forward = [], pipeline.model.unet.forward
    monkeypatch.setattr(pipeline.model.unet, "forward", lambda x, t, cond: calls.append((x, cond)) or forward(x, t, cond))
    return calls


def far(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


def test_the_net_sees_its_training_size_and_an_image_does_not_depend_on_its_batch(of_text, monkeypatch):
    calls = seen_by(of_text, monkeypatch)
    one, three = (of_text(("red blocks", "green"), n=2, size=(21, 30), guidance=2.0, batch=batch, **TILES) for batch in (1, 3))
    assert {tuple(x.shape[2:]) for x, _ in calls} == {(8, 8)}
    assert {len(x) for x, _ in calls} == {2, 6}, "guided: twice the images drawn at once"
    assert [image.size for image in one] == [(30, 21)] * 4
    assert max(far(a, b) for a, b in zip(one, three, strict=True)) <= 1
    settings = settings_of(one[1])
    assert (settings.tile, settings.overlap, settings.size) == (16, 4, (21, 30))
    (again,) = of_text(**settings.model_dump(exclude_none=True))
    assert far(again, one[1]) <= 1


def test_what_fits_one_tile_is_drawn_as_without(of_text, of_boxes):
    for pipeline, given in ((of_text, {"prompt": "red"}), (of_boxes, {"boxes": [CAT, DOG]})):
        (plain,), (tiled,) = (pipeline(**given, steps=2, size=(12, 15), guidance=2.0, **tile) for tile in ({}, {"tile": 16}))
        assert plain.tobytes() == tiled.tobytes()
    assert of_text.resolve(SampleRequest(tile=16)).overlap == 8
    assert of_text.resolve(SampleRequest(tile=12)).overlap == 6, "half, in whole pixels of the latent"


def test_noise_is_drawn_for_the_whole():
    """After one step the first tile, where it meets no other, is what the net makes of that corner of the noise."""
    pipeline = model_of()
    (step,) = pipeline.stream(SampleRequest(size=(32, 32), steps=1, seed=3, tile=16))
    noise = randn_like_per_image("start", [3])(torch.empty(1, 2, 16, 16))
    t = torch.tensor(pipeline.model.process.timesteps(1, pipeline.defaults.spacing)[:1])
    with torch.no_grad():
        corner = pipeline.model.predict(noise[:, :, :8, :8], t, Cond())
    torch.testing.assert_close(step.x0[:, :, :4, :4], corner[:, :, :4, :4])


def test_each_tile_has_its_own_boxes(of_boxes, monkeypatch):
    """The context of tile i is that of the boxes as it shows them; the unguided half has none anywhere."""
    calls = seen_by(of_boxes, monkeypatch)
    of_boxes(boxes=[CAT, DOG], size=(16, 39), guidance=2.0, **{**TILES, "steps": 1})
    model, tiles = of_boxes.model, areas((8, 20), 8, 2, image=(8.0, 19.5))
    assert len(calls) == len(tiles) == len(windows(20, 8, 2)) == 3
    shown = [[box["label"] for box in boxes_within([CAT, DOG], area)] for area in tiles]
    assert shown == [["cat"], ["dog"], ["dog"]]
    for (_, cond), area in zip(calls, tiles, strict=True):
        none, seen = cond.context.chunk(2)
        for context, boxes in ((seen, boxes_within([CAT, DOG], area)), (none, [])):
            expected = model.condition({"boxes": [boxes]}).context
            torch.testing.assert_close(context, expected)


def test_painted_boxes_are_cut_with_the_tile(monkeypatch):
    """Painted once for the whole image, the padding not counted, and cut like the latent; unguided there are none."""
    pipeline = model_of(LAYOUT.replace("dropout", "painted: 2, dropout"))
    calls = seen_by(pipeline, monkeypatch)
    pipeline(boxes=[CAT, DOG], size=(16, 39), guidance=2.0, **{**TILES, "steps": 1})
    padded = boxes_within([CAT, DOG], (0.0, 0.0, 20 / 19.5, 1.0))
    concat = pipeline.model.condition({"boxes": [padded]}, size=(8, 20)).concat
    starts = [start for start, _ in windows(20, 8, 2)]
    assert len(calls) == len(starts) == 3
    for (_, cond), start in zip(calls, starts, strict=True):
        none, seen = cond.concat.chunk(2)
        assert torch.equal(seen, concat[..., start : start + 8])
        assert not none.any()


def test_boxes_stay_where_they_are_in_a_padded_image(of_boxes, monkeypatch):
    calls = seen_by(of_boxes, monkeypatch)
    of_boxes(boxes=[CAT], size=(15, 12), steps=1, guidance=1.0)
    expected = of_boxes.model.condition({"boxes": [[{**CAT, "y": 0.2 * 15 / 16, "height": 0.4 * 15 / 16}]]}).context
    torch.testing.assert_close(calls[0][1].context, expected)


def test_maps_small_images_and_holes_are_cut_with_the_tile():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 44, 3), np.uint8))
    hole = np.zeros((30, 44), np.uint8)
    hole[5:20, 9:30] = 255
    small, classes = image.resize((11, 7)), Image.fromarray(hole // 255)
    drawn = {
        "{kind: segmentation, classes: 3, stages: 1}": {"map": classes},
        "{kind: low_res, factor: 4, scale: 2}": {"upscale": small},
        "{kind: low_res, factor: 1, fold: 2}": {"upscale": image.resize((44, 28))},
        "{kind: masked_image, channels: 2}": {"image": image, "mask": Image.fromarray(hole)},
    }
    for kind, given in drawn.items():
        (out,) = model_of(kind)(**given, **TILES)
        assert out.size == ((44, 28) if "upscale" in given else (44, 30))
    assert np.array_equal(np.asarray(out)[hole == 0], np.asarray(image)[hole == 0]), "outside the hole not a byte changed"
    (redrawn,) = model_of()(image=image, strength=0.5, **TILES)
    assert redrawn.size == (44, 30)


REFUSED = [
    ({"overlap": 4}, "overlap: 4 pixels are shared by tiles, and there are none: give tile as well"),
    ({"tile": 10}, "tile: 10 pixels cannot be halved as often as the model does: use a multiple of 4"),
    ({"tile": 0}, "tile: Input should be greater than or equal to 1"),
    ({"tile": 16, "overlap": 3}, "overlap: 3 is not possible with tiles of 16: use a multiple of 2 below that"),
    ({"tile": 16, "overlap": 16}, "overlap: 16 is not possible with tiles of 16"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_tiles_that_cannot_be_are_refused(of_text, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        of_text("red", **settings)
