"""Resize, crop, flip and the way to [-1, 1] and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.data.transforms import PLAIN, Preprocess, Variant, from_tensor, resize_shorter, to_tensor
from latentworks.random import generator

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_to_tensor_and_back_is_exact(dtype):
    images = RNG.integers(0, np.iinfo(dtype).max, (2, 5, 6, 4), dtype=dtype, endpoint=True)
    images[0, 0, 0, :2] = 0, np.iinfo(dtype).max
    x = to_tensor(images)
    assert (x.dtype, tuple(x.shape), x.is_contiguous()) == (torch.float32, (2, 4, 5, 6), True)
    assert (x.min(), x.max()) == (-1, 1)
    torch.testing.assert_close(x[1, 2], torch.from_numpy(images[1, :, :, 2].astype(np.float32)) / (np.iinfo(dtype).max / 2) - 1)
    np.testing.assert_array_equal(from_tensor(x, dtype), images)


def test_to_tensor_leaves_its_argument_alone():
    images = RNG.random((1, 4, 4, 1), dtype=np.float32)
    kept = images.copy()
    x = to_tensor(images)
    np.testing.assert_array_equal(images, kept)
    torch.testing.assert_close(x[0, 0], torch.from_numpy(2 * kept[0, ..., 0] - 1))


def test_eight_bits_and_their_sixteen_give_the_same_tensor():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    torch.testing.assert_close(to_tensor(images), to_tensor(images.astype(np.uint16) * 257), atol=1e-6, rtol=0)


def test_from_tensor_clamps():
    np.testing.assert_array_equal(from_tensor(torch.tensor([-3.0, 0.0, 3.0]).view(1, 1, 1, 3)).ravel(), [0, 128, 255])


def test_resize_is_pillows():
    image = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    reference = np.asarray(Image.fromarray(image).resize((24, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_shorter(image, 16), reference)
    assert resize_shorter(image, 40) is image
    deep = resize_shorter(image.astype(np.uint16) * 257, 16)
    assert deep.dtype == np.uint16
    assert abs(deep / 257 - reference).max() <= 1.01  # 8 bits round between the two passes
    unit = resize_shorter(image.astype(np.float32) / 255, 16)
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert abs(unit * 255 - reference).max() <= 1.01


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_every_channel_is_resized_for_itself(channels):
    image = RNG.integers(0, 256, (30, 20, channels), dtype=np.uint8)
    resized = resize_shorter(image, 10)
    assert resized.shape == (15, 10, channels)
    for c in range(channels):
        np.testing.assert_array_equal(resized[..., c : c + 1], resize_shorter(image[..., c : c + 1], 10))


@pytest.mark.parametrize("shape", [(64, 64), (10, 200), (300, 11), (7, 7), (65, 64)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_any_size_becomes_the_square(shape, crop):
    preprocess = Preprocess(size=16, crop_size=12, crop=crop, flip=True)
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    for step in range(20):
        assert preprocess.apply(image, preprocess.draw(generator(0, step))).shape == (3, 12, 12)
    assert preprocess.apply(image, Variant(0.999999, 0.0)).shape == (3, 12, 12)


def test_the_centre_is_the_centre():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10, 1)
    preprocess = Preprocess(size=10, crop_size=4, channels=1)
    np.testing.assert_array_equal(preprocess.fit(image)[..., 0], image[3:7, 3:7, 0])
    np.testing.assert_array_equal(preprocess.cut(preprocess.fit(image), PLAIN), preprocess.fit(image))


def test_crops_reach_every_place_and_flips_half():
    preprocess = Preprocess(size=6, crop_size=4, crop="random", flip=True, channels=1)
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    variants = [preprocess.draw(generator(1, i)) for i in range(400)]
    corners = {int(preprocess.cut(image, v._replace(flip=False))[0, 0, 0]) for v in variants}
    assert corners == {0, 1, 2, 6, 7, 8, 12, 13, 14}
    assert 150 < sum(v.flip for v in variants) < 250
    flipped = preprocess.cut(image, Variant(0, 0, True))
    np.testing.assert_array_equal(flipped[0, :, 0], [3, 2, 1, 0])


def test_drawing_is_a_function_of_the_generator_and_bound_by_the_settings():
    preprocess = Preprocess(size=8, crop="random", flip=True)
    assert preprocess.draw(generator(3)) == preprocess.draw(generator(3))
    assert not any(Preprocess(size=8).draw(generator(i)) != PLAIN for i in range(20))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="crop_size 9 is larger than size 8"):
        Preprocess.parse({"size": 8, "crop_size": 9})
    with pytest.raises(ValueError, match="channels: the image has 3, the settings say 1"):
        Preprocess(size=8, channels=1).apply(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 40)])
def test_boxes_and_labels_follow_what_is_cut(shape, flip):
    """A bright rectangle lies where its box and its label map say, in every variant."""
    image, labels = np.zeros((*shape, 1), np.uint8), np.zeros(shape, np.int16)
    image[8:32, 12:30], labels[8:32, 12:30] = 255, 1
    box = {"x": 12 / shape[1], "y": 8 / shape[0], "width": 18 / shape[1], "height": 24 / shape[0], "label": "a", "group": True}
    for preprocess in (Preprocess(size=20, crop_size=16, crop="random"), Preprocess(size=20), Preprocess(size=40, crop_size=24)):
        variant = Variant(0.3, 0.6, flip)
        square = preprocess.cut(preprocess.fit(image), variant)[..., 0]
        window = preprocess.window(*shape, variant)
        assert np.abs(window.labels(labels, *square.shape) * 255.0 - square).mean() < 12, "but for softened edges"
        (found,) = window.boxes([box])
        assert (found["label"], found["group"]) == ("a", True)
        bright = [np.flatnonzero((square > 127).any(axis=axis)) for axis in (1, 0)]
        size = preprocess.out_size
        edges = (found["y"], found["y"] + found["height"], found["x"], found["x"] + found["width"])
        assert np.abs(np.array(edges) * size - [bright[0][0], bright[0][-1] + 1, bright[1][0], bright[1][-1] + 1]).max() <= 1


def test_boxes_that_are_mostly_cut_away_are_left_out():
    window = Preprocess(size=20, crop_size=10).window(20, 20)
    inside, half, sliver = ({"x": x, "y": 0.4, "width": 0.2, "height": 0.2, "label": 0} for x in (0.4, 0.15, 0.06))
    assert [box["width"] for box in window.boxes([inside, half, sliver])] == pytest.approx([0.4, 0.2])
    assert len(window.boxes([inside, half, sliver], visible=0.04)) == 3
