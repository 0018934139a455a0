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
    first, second = (np.asarray(image) for image in pipe(["red heart", "green apple"], steps=8, seed=0))
    assert first.shape == (64, 64, 3)
    corners = first[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 200, "emoji stand on white"
    heart = first[first.min(axis=2) < 150].mean(axis=0)
    assert heart[0] > heart[1] + 30, "a red heart is red"
    assert np.abs(first.astype(int) - second).mean() > 5
