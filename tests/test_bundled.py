"""The models that come with the package: there, small, with card and licence, and able to draw."""

import numpy as np
import pytest
from PIL import Image

import latentworks
from latentworks.checkpoints.resolve import bundled

LARGEST = 40_000_000  # bytes a wheel may grow by


@pytest.mark.parametrize("name", ["openmoji-64", "openmoji-128"])
def test_a_bundled_model_is_small_and_has_card_and_licence(name):
    folder = bundled()[name]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "OpenMoji" in card
    assert "CC BY-SA 4.0" in card
    assert (folder / "LICENSE.txt").is_file()


def test_the_bundled_model_draws():
    pipe = latentworks.load("openmoji-64")
    assert pipe.model.first_stage.factor == 4
    assert pipe.model.first_stage.channels <= 4
    tones = ["woman with light skin tone", "woman with dark skin tone"]
    light, dark = (np.stack([np.asarray(image) for image in pipe(tone, n=4, steps=8)]) for tone in tones)
    assert light.shape == (4, 64, 64, 3)
    assert np.concatenate([light, dark])[:, [0, 0, -1, -1], [0, -1, 0, -1]].min() > 200, "emoji stand on white"
    face = (slice(None), slice(18, 36), slice(24, 40))
    assert light[face].mean() > dark[face].mean() + 30, "it draws what it is asked for"


def test_the_enlarger_adds_edges_and_keeps_what_is_shown():
    """A disc of 64 px becomes one of 128 px: sharper than any filter's, and the same when it is made small again."""
    y, x = np.mgrid[:256, :256] - 127.5
    disc = np.where((x**2 + y**2 < 80**2)[..., None], np.array([255, 220, 40]), 255)
    disc[(np.hypot(x, y) > 74) & (np.hypot(x, y) < 84)] = 0
    small = Image.fromarray(disc.astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    (large,) = latentworks.load("openmoji-128")(upscale=small)
    assert large.size == (128, 128)
    again = large.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(again, float) - np.asarray(small, float)).mean() < 4

    def between(image):
        """The share of pixels that are neither dark nor bright."""
        grey = np.asarray(image.convert("L"))
        return float(((grey > 50) & (grey < 190)).mean())

    assert between(large) < 0.7 * between(small.resize((128, 128), Image.Resampling.BICUBIC))
