"""Colours of classes, and label maps read back from numbers or colours."""

import numpy as np
import pytest
from PIL import Image

from latentworks.data.palette import class_colours, paint, palette_of, read_map

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def test_colours_are_those_of_pascal_voc():
    assert class_colours(9) == (
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128), (64, 0, 0),
    )  # fmt: skip
    assert len(set(class_colours(256))) == 256


def test_a_painted_map_is_read_back():
    labels = np.random.default_rng(0).integers(0, 3, (6, 5))
    assert np.array_equal(read_map(Image.fromarray(paint(labels, PALETTE)), 3, PALETTE), labels)
    assert paint(np.array([[-1]]), PALETTE).tolist() == [[[255, 255, 255]]]


def test_numbers_are_read_as_they_are_and_255_is_none():
    image = Image.fromarray(np.array([[0, 2], [255, 1]], np.uint8))
    assert read_map(image, 3, PALETTE).tolist() == [[0, 2], [-1, 1]]
    image.putpalette([9, 9, 9] * 256)
    assert image.mode == "P"
    assert read_map(image, 3, PALETTE).tolist() == [[0, 2], [-1, 1]]


def test_what_is_no_class_is_named():
    with pytest.raises(ValueError, match="value 3, but this model has 3 classes: 0 sky #000000, 1 sea #ff0000, 2 sand #0000ff"):
        read_map(Image.fromarray(np.full((2, 2), 3, np.uint8)), 3, PALETTE, ("sky", "sea", "sand"))
    with pytest.raises(ValueError, match="colour #010203, which is no class: this model has 3 classes: 0 #000000"):
        read_map(Image.new("RGB", (2, 2), (1, 2, 3)), 3, PALETTE)
    with pytest.raises(ValueError, match="the classes of this model have none: give a grey PNG"):
        read_map(Image.new("RGB", (2, 2)), 3, ())


def test_a_files_own_palette_comes_first(tmp_path):
    image = Image.fromarray(np.zeros((2, 2), np.uint8))
    image.save(tmp_path / "grey.png")
    assert palette_of(tmp_path / "grey.png", 3) == class_colours(3)
    image.putpalette([value for colour in PALETTE for value in colour])
    image.save(tmp_path / "own.png")
    assert palette_of(tmp_path / "own.png", 3) == PALETTE
