"""Training masks: their share, shape, spread and determinism."""

import numpy as np
import pytest
from scipy import ndimage

from latentworks.data.masks import LEAST, MOST, draw_mask


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (96, 160), (8, 200), (256, 256)])
def test_the_share_lies_between_the_limits(height, width):
    rng = np.random.default_rng(0)
    masks = [draw_mask(height, width, rng) for _ in range(60)]
    assert {(mask.shape, mask.dtype.name) for mask in masks} == {((height, width), "bool")}
    shares = [mask.mean() for mask in masks]
    assert LEAST <= min(shares) < 0.15
    assert 0.35 < max(shares) <= MOST


def test_a_mask_is_a_function_of_the_generator():
    for seed in range(5):
        np.testing.assert_array_equal(draw_mask(64, 64, np.random.default_rng(seed)), draw_mask(64, 64, np.random.default_rng(seed)))
    rng = np.random.default_rng(0)
    assert len({draw_mask(64, 64, rng).tobytes() for _ in range(50)}) == 50


def test_holes_are_thick():
    """The middle of the hole is far from its edge: at least 1/100 of the side always, mostly several times that."""
    rng = np.random.default_rng(0)
    depths = [ndimage.distance_transform_edt(np.pad(draw_mask(128, 128, rng), 1)).max() / 128 for _ in range(100)]
    assert min(depths) >= 0.01
    assert np.median(depths) > 0.1


def test_every_place_may_be_hole():
    rng = np.random.default_rng(0)
    often = np.mean([draw_mask(64, 64, rng) for _ in range(400)], axis=0)
    assert often.min() > 0.05
    assert often.max() < 0.6


def test_half_are_boxes():
    """At most four boxes have at most nine different rows between their edges; strokes, which are slanted and round, have more."""
    rng = np.random.default_rng(0)
    kinds = [len({row.tobytes() for row in draw_mask(128, 128, rng)}) for _ in range(200)]
    assert 0.35 < np.mean(np.array(kinds) <= 9) < 0.65


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="mask: an image of 4 x 64 pixels is too small for one: give at least 8 a side"):
        draw_mask(4, 64, np.random.default_rng(0))
