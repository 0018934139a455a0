"""The model that comes with the package: there, small, with card and licence, and able to draw."""

import numpy as np

import latentworks
from latentworks.checkpoints.resolve import bundled

LARGEST = 40_000_000  # bytes a wheel may grow by


def test_the_bundled_model_draws():
    folder = bundled()["openmoji-64"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "OpenMoji" in card
    assert "CC BY-SA 4.0" in card
    pipe = latentworks.load("openmoji-64")
    assert pipe.model.first_stage.factor == 4
    assert pipe.model.first_stage.channels <= 4
    tones = ["woman with light skin tone", "woman with dark skin tone"]
    light, dark = (np.stack([np.asarray(image) for image in pipe(tone, n=4, steps=8)]) for tone in tones)
    assert light.shape == (4, 64, 64, 3)
    assert np.concatenate([light, dark])[:, [0, 0, -1, -1], [0, -1, 0, -1]].min() > 200, "emoji stand on white"
    face = (slice(None), slice(18, 36), slice(24, 40))
    assert light[face].mean() > dark[face].mean() + 30, "it draws what it is asked for"
