"""`lw data check` finds what is wrong before training does."""

import numpy as np
import pytest
from PIL import Image

from latentworks.data import check as module
from latentworks.data.check import check
from latentworks.data.files import read_labels
from latentworks.data.scenes import write_scenes

RNG = np.random.default_rng(0)


def save(path, size=40, mode="RGB"):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode).save(path)


def report_of(path, **options):
    *_, report = check(path, **options)
    return report


def test_a_good_folder(tmp_path):
    for i in range(30):
        save(tmp_path / f"{i}.png")
    seen = [report.done for report in check(tmp_path)]
    assert seen == list(range(31))
    report = report_of(tmp_path)
    assert report.ok
    assert report.lines()[0] == "30 images: 30 of 3 channels uint8"
    assert report.lines()[1].startswith("split: ")
    assert report.lines()[-1] == "no problems found"


def test_every_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_HUGE", 50 * 50)
    save(tmp_path / "good.png")
    (tmp_path / "twin.png").write_bytes((tmp_path / "good.png").read_bytes())
    save(tmp_path / "tiny.png", size=5)
    save(tmp_path / "huge.png", size=60)
    save(tmp_path / "grey.png", mode="L")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:99])
    (tmp_path / "good.txt").write_text("a caption")
    (tmp_path / "lost.txt").write_text("a caption")
    report = report_of(tmp_path, min_size=8)
    assert not report.ok
    assert report.mixed_channels
    assert len(report.corrupt) == 1
    assert report.corrupt[0].startswith("bad.png cannot be read")
    assert report.duplicates == [["good.png", "twin.png"]]
    assert report.too_small == ["tiny.png (5 x 5)"]
    assert report.huge == ["huge.png (60 x 60)"]
    assert report.kinds == {(3, "uint8"): 4, (1, "uint8"): 1}
    assert len(report.problems) == 1
    assert "lost.txt" in report.problems[0]
    assert "good.png" not in report.uncaptioned
    assert len(report.uncaptioned) == 5
    text = "\n".join(report.lines())
    for part in ("1 corrupt (skipped in training):", "good.png = twin.png", "smaller than 8 px", "mixed channel counts", "problems found"):
        assert part in text


def test_metadata_leaves_images_out_and_twins_straddle_the_split(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(tmp_path / "c.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "split": "train"}\n{"file_name": "b.png", "split": "test"}\n')
    report = report_of(tmp_path)
    assert report.unlisted == ["c.png"]
    assert report.straddling == [["a.png", "b.png"]]


def test_missing_and_empty(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        report_of(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        report_of(tmp_path / "nowhere")


def test_annotations_are_counted_and_must_fit(tmp_path):
    *_, (count, _) = write_scenes(tmp_path / "scenes", 48, 30)
    report = report_of(tmp_path / "scenes", min_size=32)
    assert report.ok, report.lines()
    lines = "\n".join(report.lines())
    assert f"in {count} images: " in lines
    assert f"label maps: {count}, with " in lines
    Image.new("L", (20, 48)).save(tmp_path / "scenes/labels/000000.png")
    Image.new("RGB", (48, 48)).save(tmp_path / "scenes/labels/000001.png")
    Image.new("L", (48, 47)).save(tmp_path / "scenes/images/000002_mask.png")
    misfits = report_of(tmp_path / "scenes").misfits
    assert misfits[0] == "labels/000000.png and images/000000.png have sizes 20 x 48 and 48 x 48"
    assert misfits[1] == (
        "labels/000001.png cannot be read: its pixels are RGB; a label map has one number a pixel: save it as a grey or palette PNG"
    )
    assert misfits[2] == "images/000002_mask.png and images/000002.png have sizes 48 x 47 and 48 x 48"


def test_palette_maps_are_read_as_indices(tmp_path):
    image = Image.new("P", (3, 2), 7)
    image.putpalette([0] * 21 + [200, 100, 50])
    image.save(tmp_path / "map.png")
    assert (read_labels(tmp_path / "map.png") == 7).all()
    Image.new("1", (3, 2), 1).save(tmp_path / "mask.png")
    assert (read_labels(tmp_path / "mask.png") == 1).all()
