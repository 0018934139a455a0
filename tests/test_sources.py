"""Folders of images: formats and depths, captions, classes, the split, and every way a folder can be wrong."""

import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from latentworks.data.files import SUFFIXES, CorruptImage, read_header, read_image
from latentworks.data.listing import hashed_fraction
from latentworks.data.sources import FolderSource, convert_channels, convert_depth

RNG = np.random.default_rng(0)


def pixels(height=6, width=7, channels=3, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


def save(path: Path, image=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels() if image is None else image).save(path)
    return path


def png16(image) -> bytes:
    """A 16-bit PNG written by hand, since Pillow cannot."""
    height, width, channels = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def write(path: Path, image) -> None:
    """Losslessly, in the format of the suffix."""
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".tiff":
        kind = {1: {}, 3: {"photometric": "rgb"}}.get(image.shape[2], {"photometric": "minisblack", "planarconfig": "contig"})
        tifffile.imwrite(path, image[..., 0] if image.shape[2] == 1 else image, **kind)
    elif image.dtype == np.uint16:
        path.write_bytes(png16(image))
    else:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path, lossless=True)


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [(".png", c, np.uint8) for c in (1, 3, 4)]
    + [(".png", c, np.uint16) for c in (1, 3, 4)]
    + [(".webp", 3, np.uint8), (".webp", 4, np.uint8)]
    + [(s, c, d) for s in (".tiff", ".npy") for c in (1, 2, 3, 5) for d in (np.uint8, np.uint16)],
)
def test_pixels_survive_in_their_own_depth(tmp_path, suffix, channels, dtype):
    image = pixels(channels=channels, dtype=dtype)
    if suffix == ".webp" and channels == 4:
        image[..., 3] = image[..., 3] // 2 + 1  # webp may change the colour of invisible pixels
    write(tmp_path / f"a{suffix}", image)
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, image)
    assert read_header(tmp_path / f"a{suffix}") == (6, 7, channels, dtype)


def test_pages_and_planes_of_a_tiff_are_channels(tmp_path):
    image = pixels(channels=5, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(image, -1, 0), photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif"), image)
    assert read_header(tmp_path / "pages.tif").channels == 5


def test_jpeg_palette_bilevel_and_float(tmp_path):
    save(tmp_path / "a.jpg", np.full((8, 9, 3), 200, np.uint8))
    assert abs(read_image(tmp_path / "a.jpg").astype(int) - 200).max() <= 2
    image = np.repeat(pixels(channels=1) // 64 * 64, 3, axis=2)
    Image.fromarray(image).quantize(8).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (6, 7, 3)
    Image.fromarray(image[..., 0] > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png")[..., 0], (image[..., 0] > 100) * 255)
    np.save(tmp_path / "f.npy", np.full((4, 5), 0.25))
    assert (read_image(tmp_path / "f.npy").dtype, read_image(tmp_path / "f.npy").shape) == (np.float32, (4, 5, 1))


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    Image.fromarray(pixels(4, 8)).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (8, 4, 3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_named(tmp_path, suffix):
    good = tmp_path / f"good{'.tiff' if suffix == '.tif' else suffix}"
    if suffix == ".npy":
        np.save(good, pixels(40, 40))
    else:
        save(good, pixels(40, 40))
    for name, data in (("cut", good.read_bytes()[:200]), ("noise", bytes(range(256))), ("empty", b"")):
        damaged = tmp_path / f"{name}{suffix}"
        damaged.write_bytes(data)
        with pytest.raises(CorruptImage, match=damaged.name):
            read_image(damaged)


def test_what_is_no_image_is_refused(tmp_path):
    for name, array in (("int", np.zeros((4, 4), np.int32)), ("far", np.full((4, 4), 2.0)), ("nan", np.full((4, 4), np.nan))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(CorruptImage, match=name):
            read_image(tmp_path / f"{name}.npy")
    np.save(tmp_path / "deep.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(CorruptImage, match="expected h w"):
        read_image(tmp_path / "deep.npy")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png", pixels(60, 60))
    np.save(tmp_path / "a.npy", pixels(60, 60))
    tifffile.imwrite(tmp_path / "a.tiff", pixels(60, 60, 3, np.uint16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix in ("png", "npy", "tiff"):
        with pytest.raises(CorruptImage, match="exceed"), warnings.catch_warnings():
            read_image(tmp_path / f"a.{suffix}")


def folder_of(path: Path, n: int) -> Path:
    for i in range(n):
        save(path / f"{i:03}.png", np.full((4, 4, 3), i % 256, np.uint8))
    return path


def test_plain_images_and_their_split(tmp_path):
    folder_of(tmp_path, 200)
    both, train, held = (FolderSource(tmp_path, split=split) for split in (None, "train", "held_out"))
    assert len(both) == 200
    assert {e.name for e in train.entries} | {e.name for e in held.entries} == {e.name for e in both.entries}
    assert 1 <= len(held) <= 25
    assert both.counts == {"train": len(train), "held_out": len(held)}
    assert [e.name for e in held.entries] == [e.name for e in FolderSource(tmp_path, split="held_out").entries]
    assert both.read(7).image[0, 0, 0] == 7
    assert both.read(7).text == () and both.read(7).label is None  # noqa: PT018


def test_twenty_images_hold_out_at_least_one_and_fewer_none(tmp_path):
    names = sorted((f"{i:03}.png" for i in range(400)), key=hashed_fraction)[-20:]  # none of them below 5 %
    for name in names:
        save(tmp_path / name)
    assert len(FolderSource(tmp_path, split="held_out")) == 1
    (tmp_path / names[0]).unlink()
    with pytest.raises(ValueError, match="no held_out image; give at least 20 images"):
        FolderSource(tmp_path, split="held_out")


def test_captions_of_the_same_stem(tmp_path):
    folder_of(tmp_path, 3)
    (tmp_path / "000.txt").write_text("a caption\n\nanother\n")
    (tmp_path / "LICENSE.txt").write_text("CC0")
    source = FolderSource(tmp_path)
    assert source.read(0).text == ("a caption", "another")
    assert source.read(1).text == ()
    assert len(FolderSource(tmp_path, needs=("text",))) == 1
    (tmp_path / "009.txt").write_text("lost")
    with pytest.raises(ValueError, match=r"009\.txt is a caption without its image"):
        FolderSource(tmp_path)


def test_sub_folders_are_classes(tmp_path):
    for name in ("dog", "cat"):
        folder_of(tmp_path / name, 2)
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden" / "x.png")
    source = FolderSource(tmp_path)
    assert source.classes == ("cat", "dog")
    assert [(source.read(i).name, source.read(i).label) for i in range(4)][1:3] == [("cat/001.png", 0), ("dog/000.png", 1)]


def test_one_sub_folder_or_mixed_depths_are_no_classes(tmp_path):
    folder_of(tmp_path / "only", 2)
    assert FolderSource(tmp_path).classes == ()
    folder_of(tmp_path / "other", 2)
    folder_of(tmp_path, 1)
    assert FolderSource(tmp_path).classes == ()


def test_train_and_test_folders_are_the_split(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder_of(tmp_path / split / name, 2)
    source = FolderSource(tmp_path, split="held_out")
    assert source.classes == ("cat", "dog")
    assert [e.name for e in source.entries] == [f"test/{name}/00{i}.png" for name in ("cat", "dog") for i in range(2)]


def metadata(path: Path, *rows) -> Path:
    path.mkdir(exist_ok=True)
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metadata(tmp_path):
    folder_of(tmp_path, 4)
    metadata(
        tmp_path,
        {"file_name": "000.png", "text": "zero", "aliases": ["nought"], "label": "b", "split": "train"},
        {"file_name": "002.png", "text": "", "label": "a", "split": "validation"},
    )
    source = FolderSource(tmp_path)
    assert [(e.name, e.text, e.label, e.split) for e in source.entries] == [
        ("000.png", ("zero", "nought"), 1, "train"),
        ("002.png", (), 0, "held_out"),
    ]
    assert source.classes == ("a", "b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "lost.png", "text": "x"}, "line 2: a caption without its image: 'lost.png'"),
        ({"text": "x"}, 'expected {"file_name"'),
        ({"file_name": "001.png", "text": 3}, "text of '001.png' must be a string"),
        ({"file_name": "001.png", "split": "dev"}, "split of '001.png' must be one of train, held_out"),
        ({"file_name": "001.png", "split": "train"}, r"split: 000\.png has none"),
        ({"file_name": "001.png", "label": -1}, "label of '001.png' must be"),
        ({"file_name": "001.png", "label": 1}, "label: 000.png has None"),
        ({"file_name": "000.png"}, "'000.png' is listed twice"),
    ],
)
def test_bad_metadata_is_named(tmp_path, row, message):
    folder_of(tmp_path, 2)
    metadata(tmp_path, {"file_name": "000.png"}, row)
    with pytest.raises(ValueError, match=message) as error:
        FolderSource(tmp_path)
    assert "\n" not in str(error.value)


def test_metadata_that_is_no_json(tmp_path):
    folder_of(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text("{oops\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl line 1"):
        FolderSource(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        FolderSource(save(tmp_path / "a.png"))


def test_mixed_channel_counts_and_the_way_out(tmp_path):
    save(tmp_path / "colour.png")
    save(tmp_path / "grey.png", pixels(channels=1)[..., 0])
    save(tmp_path / "alpha.png", np.concatenate([pixels(), np.zeros((6, 7, 1), np.uint8)], axis=2))
    with pytest.raises(ValueError, match=r"mixed channel counts: alpha\.png has 4, colour\.png has 3; set channels=3"):
        FolderSource(tmp_path)
    source = FolderSource(tmp_path, channels=3)
    assert {source.read(i).image.shape for i in range(3)} == {(6, 7, 3)}
    assert (source.read(0).image == 255).all(), "transparent becomes white"
    grey = source.read(2).image
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_mixed_depths_take_the_widest(tmp_path):
    image = pixels()
    save(tmp_path / "a.png", image)
    (tmp_path / "b.png").write_bytes(png16(pixels(dtype=np.uint16)))
    source = FolderSource(tmp_path)
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(source.read(0).image, image.astype(int) * 257)


def test_conversions():
    image = pixels(channels=1)
    np.testing.assert_array_equal(convert_channels(convert_channels(image, 3), 1), image)
    colour = pixels()
    reference = np.asarray(Image.fromarray(colour).convert("L"))
    assert abs(convert_channels(colour, 1)[..., 0].astype(int) - reference).max() <= 1
    with pytest.raises(ValueError, match="5 channels cannot become one of 3"):
        convert_channels(pixels(channels=5), 3)
    assert convert_depth(np.full((1, 1, 1), 255, np.uint8), np.dtype(np.float32)).item() == 1


def test_the_fingerprint_follows_the_files(tmp_path):
    folder_of(tmp_path, 3)
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    assert FolderSource(tmp_path, channels=1).fingerprint() != before
    save(tmp_path / "001.png", pixels(9, 9))
    assert FolderSource(tmp_path).fingerprint() != before


def test_corrupt_files_do_not_stop_the_listing(tmp_path):
    folder_of(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(b"no png")
    source = FolderSource(tmp_path)
    assert source.channels == 3
    with pytest.raises(CorruptImage, match=r"001\.png cannot be read"):
        source.read(1)
