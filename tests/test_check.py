"""`lw data check` finds what is wrong before training does."""

import numpy as np
import pytest
from PIL import Image

from latentworks.data import check as module
from latentworks.data.check import check

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
