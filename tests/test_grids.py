"""Pictures of pictures: where the parts go, and captions that fit."""

import numpy as np
from PIL import Image

from latentworks.grids import sheet


def test_a_sheet_holds_every_image_enlarged_in_its_place():
    images = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    pixels = np.asarray(sheet(images, columns=2, scale=2))
    assert pixels.shape == (2 * (8 + 4) + 4, 2 * (8 + 4) + 4, 3)
    assert (pixels[4, 4].tolist(), pixels[11, 16].tolist(), pixels[16, 4].tolist()) == ([255, 0, 0], [0, 128, 0], [0, 0, 255])


def test_letters_the_font_lacks_lose_their_accents():
    images = [Image.new("RGB", (64, 64), "white")]
    assert np.array_equal(sheet(images, ["Côte d’Ivoire"]), sheet(images, ["Cote d?Ivoire"]))
    assert not np.array_equal(sheet(images, ["Côte"]), sheet(images, ["C?te"]))
