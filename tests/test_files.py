"""Files beyond the plain ones of test_sources: compressed and inverted TIFFs, 16-bit grey with alpha, every EXIF orientation."""

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from latentworks.data.files import CorruptImage, read_header, read_image
from test_sources import pixels, png16


def both(path):
    """The image, checked against its header."""
    image = read_image(path)
    assert read_header(path) == (*image.shape, image.dtype)
    return image


def test_sixteen_bit_grey_with_alpha(tmp_path):
    image = pixels(channels=2, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(image))
    np.testing.assert_array_equal(both(tmp_path / "a.png"), image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_every_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels(4, 8)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(both(path), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("predictor", [False, True])
def test_deflated_tiff(tmp_path, dtype, predictor):
    image = pixels(60, 70, 3, dtype)
    tifffile.imwrite(tmp_path / "a.tiff", image, photometric="rgb", compression="zlib", predictor=predictor, rowsperstrip=7)
    np.testing.assert_array_equal(both(tmp_path / "a.tiff"), image)
    data = (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "cut.tiff").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptImage, match=r"cut\.tiff"):
        read_image(tmp_path / "cut.tiff")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_lzw_tiff(tmp_path, mode):
    image = pixels(20, 30, 1, np.uint16)[..., 0] if mode == "I;16" else np.asarray(Image.fromarray(pixels(20, 30)).convert(mode))
    Image.fromarray(image).save(tmp_path / "a.tiff", compression="tiff_lzw")
    np.testing.assert_array_equal(both(tmp_path / "a.tiff"), image if image.ndim == 3 else image[..., None])


def test_tiff_that_is_no_plain_brightness(tmp_path):
    image = pixels(20, 30, 1)
    tifffile.imwrite(tmp_path / "white.tiff", 255 - image[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(both(tmp_path / "white.tiff"), image)
    bits = image[..., 0] > 100
    Image.fromarray(bits).save(tmp_path / "bits.tiff")
    Image.fromarray(bits).save(tmp_path / "fax.tiff", compression="group4")
    for name in ("bits", "fax"):
        np.testing.assert_array_equal(both(tmp_path / f"{name}.tiff")[..., 0], bits * 255)
    colour = Image.fromarray(pixels(20, 30)).quantize(16)
    colour.save(tmp_path / "palette.tiff")
    np.testing.assert_array_equal(both(tmp_path / "palette.tiff"), np.asarray(colour.convert("RGB")))
    Image.fromarray(pixels(20, 30)).convert("CMYK").save(tmp_path / "print.tiff")
    assert both(tmp_path / "print.tiff").shape == (20, 30, 3)
    floats = pixels(20, 30, 3).astype(np.float32) / 255
    tifffile.imwrite(tmp_path / "floats.tiff", floats, photometric="rgb")
    np.testing.assert_array_equal(both(tmp_path / "floats.tiff"), floats)


def test_transparent_palettes_keep_their_alpha(tmp_path):
    image = Image.fromarray(pixels(8, 8)).quantize(8)
    image.save(tmp_path / "a.png", transparency=3)
    read = both(tmp_path / "a.png")
    np.testing.assert_array_equal(read[..., 3], np.where(np.asarray(image) == 3, 0, 255))


def test_a_jpeg_called_png(tmp_path):
    Image.fromarray(np.full((8, 9, 3), 200, np.uint8)).save(tmp_path / "a.png", format="JPEG")
    assert both(tmp_path / "a.png").shape == (8, 9, 3)


def test_other_formats_are_refused(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png", format="BMP")
    with pytest.raises(CorruptImage, match=r"a\.png"):
        read_header(tmp_path / "a.png")
