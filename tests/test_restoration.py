"""What the benchmarks of restoration measure with, on results whose figures are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

from latentworks.data.degrade import back_project, bicubic

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from restoration import crops
from super_resolution import UNSEEN, consistency, enlarged, verdicts

RNG = np.random.default_rng(0)
PICTURES = np.kron(RNG.integers(0, 256, (2, 4, 6, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)  # 32 x 48


def test_a_crop_is_the_smallest_square_around_the_hole():
    holes = np.zeros((4, 20, 30), bool)
    holes[0, 5:9, 10:12] = True
    holes[1, :3, 27:] = True
    holes[2, 2:19, 0:30:29] = True  # wider than the image is high
    holes[3, 7, 7] = True
    pixels = holes[..., None].astype(np.uint8) * np.arange(1, 601, dtype=np.uint16).reshape(20, 30, 1).astype(np.uint8)
    found = list(crops(pixels, holes))
    assert [crop.shape for crop in found] == [(4, 4, 1), (3, 3, 1), (20, 20, 1), (1, 1, 1)]
    np.testing.assert_array_equal(found[0], pixels[0, 5:9, 9:13])
    np.testing.assert_array_equal(found[1], pixels[1, :3, 27:])


@pytest.mark.parametrize("name", list(UNSEEN))
def test_unseen_degradations_are_four_times_smaller_and_in_place(name):
    small = np.stack([UNSEEN[name](image, 4, np.random.default_rng(0)) for image in PICTURES])
    assert (small.shape, small.dtype) == ((2, 8, 12, 3), np.uint8)
    reference = np.stack([bicubic(image, 4) for image in PICTURES]).astype(float)

    def apart(step):
        return np.square(small[:, :, 1:-1] - reference[:, :, 1 + step : 11 + step]).mean()

    assert apart(0) < min(apart(-1), apart(1)) / 2


def test_consistency_is_seen_in_the_small_images():
    small = np.stack([bicubic(image, 4) for image in PICTURES])
    assert consistency(PICTURES, small, 4) == 100
    drawn = enlarged(small, 4)
    before = consistency(drawn, small, 4)
    assert before < 40 < consistency(np.stack([back_project(*pair, 4) for pair in zip(drawn, small, strict=True)]), small, 4)


def test_verdicts_name_who_is_nearer():
    rows = [
        {"degradation": degradation, "method": method, "distance": distance}
        for degradation in ("bicubic", "bsr", *UNSEEN)
        for method, distance in {
            "bicubic enlargement": 9.0,
            "regression, trained on bicubic": 5.0,
            "regression, trained on bsr": 2.0,
            "diffusion, trained on bicubic": 4.0,
            "diffusion, trained on bsr": 3.0,
        }.items()
    ]
    assert [line.endswith("yes") for line in verdicts(rows)] == [True, True, True, False, True, True]
