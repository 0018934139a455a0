"""What a model draws made larger by another one: the same as enlarging its pictures one by one, and what is refused before it draws."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.pipeline import Drawn, load
from latentworks.request import SampleRequest, settings_of
from latentworks.types import Step
from toys import diffusion_model, lw

SMALL = "conditioners=[{kind: low_res, factor: 2}]"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model without conditions, an enlarger, and what is none for it."""
    path = tmp_path_factory.mktemp("models")
    save_folder(path / "plain", *diffusion_model(name="unconditional-64"))
    torch.manual_seed(1)
    save_folder(path / "twice", *diffusion_model(SMALL, name="unconditional-64"))
    save_folder(path / "thrice", *diffusion_model(SMALL, "unet.multipliers=[1, 2, 2]", name="unconditional-64"))
    save_folder(path / "deep", *diffusion_model(SMALL, "data.depth=uint16", name="unconditional-64"))
    return path


@pytest.mark.parametrize("settings", [{}, {"size": (14, 10)}, {"tile": 16}, {"to_seed": 9}])
def test_as_its_pictures_enlarged_one_by_one(folders, settings):
    """Also of sides that the networks cannot halve, in tiles, between seeds, and however many at once."""
    plain, twice = load(folders / "plain"), load(folders / "twice")
    given = {"n": 3, "seed": 5, "steps": 2, **settings}
    small, large = plain(**given), plain(**given, enlarge=folders / "twice", batch=2)
    tile = settings.get("tile")
    for before, after in zip(small, large, strict=True):
        (alone,) = twice(upscale=before, seed=settings_of(before).seed, tile=tile)
        assert after.size == (2 * before.width, 2 * before.height)
        assert np.abs(np.asarray(alone, int) - np.asarray(after, int)).max() <= 1
        assert np.asarray(after).std() > 0


def test_the_steps_of_both_are_counted_and_the_picture_says_how_it_was_made(folders):
    pipeline, asked = load(folders / "plain"), SampleRequest(steps=2, n=3, batch=2, enlarge=folders / "twice")
    events = list(pipeline.draw(asked))
    assert sum(isinstance(event, Step) for event in events) == 2 * pipeline.length(pipeline.resolve(asked))
    assert [event.done for event in events if isinstance(event, Drawn)] == [2, 3]
    image = pipeline(steps=2, enlarge=folders / "twice")[0]
    assert str(settings_of(image).enlarge) == "twice"
    assert image.info["parameters"].endswith("Size: 16x16, Hires upscaler: twice")


def test_tiles_must_suit_both(folders):
    with pytest.raises(ValueError, match="tile: 12 pixels cannot be halved as often as the model does: use a multiple of 8"):
        load(folders / "plain").resolve(SampleRequest(enlarge=folders / "thrice", tile=12, size=(24, 24)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", "enlarge: .*plain .unconditional-64. is no model of super-resolution: name one, e.g. openmoji-128"),
        ("deep", "enlarge: .*deep takes 3 channels of uint16, and 3 of uint8 are drawn"),
        ("none", "enlarge: no model '.*none': no such folder"),
    ],
)
def test_refused_before_anything_is_drawn(folders, name, said):
    with pytest.raises(ValueError, match=said):
        load(folders / "plain").resolve(SampleRequest(enlarge=folders / name))


def test_from_the_command_line(folders, tmp_path, monkeypatch, capsys):
    given = ("sample", folders / "plain", "--steps", 2, "-n", 2, "--enlarge")
    code, _, stderr = lw(monkeypatch, capsys, *given, folders / "twice", "--out", tmp_path / "out")
    assert code == 0, stderr
    assert [Image.open(file).size for file in sorted((tmp_path / "out").glob("*.png"))] == [(32, 32)] * 2
    code, _, stderr = lw(monkeypatch, capsys, *given, folders / "deep", "--out", tmp_path / "none")
    assert code != 0
    assert re.search("enlarge: .*deep takes 3 channels", stderr)
    assert not (tmp_path / "none").exists()
