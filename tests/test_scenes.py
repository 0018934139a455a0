"""Composed scenes: what is written agrees with what is seen, what is said is true, and scene i depends on nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from latentworks.data.listing import list_folder
from latentworks.data.scene_materials import materials
from latentworks.data.scene_words import CATEGORIES, RELATIONS, caption, counted
from latentworks.data.scenes import SMALLEST, compose_single, never_together, write_scenes, write_singles

N, SIZE = 40, 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    assert list(write_scenes(folder, SIZE, N, seed=3))[-1] == (N, N)
    return folder


def table(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def mask_of(segmentation):
    """COCO's run lengths, which begin with background and go down the columns."""
    counts = segmentation["counts"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(segmentation["size"], order="F")


def test_masks_boxes_areas_and_label_maps_agree(scenes):
    instances = table(scenes, "instances")
    assert [kind["name"] for kind in instances["categories"]] == [category.name for category in CATEGORIES]
    for row in instances["images"]:
        labels = np.asarray(Image.open(scenes / "labels" / f"{row['id']:06d}.png"))
        drawn = np.zeros_like(labels)
        assert Image.open(scenes / row["file_name"]).size == (row["width"], row["height"]) == (SIZE, SIZE)
        objects = [a for a in instances["annotations"] if a["image_id"] == row["id"]]
        assert 3 <= len(objects) <= 8
        for entry in objects:
            mask, (x, y, w, h) = mask_of(entry["segmentation"]), entry["bbox"]
            assert mask.sum() == entry["area"] > 0
            assert mask[y : y + h, x : x + w].sum() == entry["area"]
            assert all(edge.any() for edge in (mask[y], mask[y + h - 1], mask[:, x], mask[:, x + w - 1]))
            assert max(w, h) >= SMALLEST * SIZE * 0.3, "what can be seen of it"
            drawn[mask] = entry["category_id"]
        assert np.array_equal(drawn, labels)
    assert len({entry["id"] for entry in instances["annotations"]}) == len(instances["annotations"])


def test_captions_count_and_relate_truly(scenes):
    instances, captions = table(scenes, "instances"), table(scenes, "captions")
    for entry in captions["annotations"][::2]:
        objects = [a for a in instances["annotations"] if a["image_id"] == entry["image_id"]]
        groups = {CATEGORIES[k - 1]: [a["bbox"] for a in objects if a["category_id"] == k] for k in {a["category_id"] for a in objects}}
        said = [
            (first, second, relation)
            for relation in RELATIONS
            for first in groups
            for second in groups
            if f"{counted(first, len(groups[first]))} {relation.words} {counted(second, len(groups[second]))}" in entry["caption"]
        ]
        assert len(said) == 1, entry["caption"]
        assert all(counted(category, len(boxes)) in entry["caption"] for category, boxes in groups.items())
        first, second, relation = said[0]
        one, other = ([b[relation.axis] + b[relation.axis + 2] / 2 for b in groups[kind]] for kind in (first, second))
        assert np.mean(one) < np.mean(other) if relation.before else np.mean(one) > np.mean(other)


def test_the_second_caption_says_where_each_object_lies(scenes):
    instances, captions = table(scenes, "instances"), table(scenes, "captions")
    assert [entry["image_id"] for entry in captions["annotations"]] == [image["id"] for image in captions["images"] for _ in range(2)]
    for entry in captions["annotations"][1::2]:
        objects = [a for a in instances["annotations"] if a["image_id"] == entry["image_id"]]
        for a, words in zip(objects, entry["caption"].split(", "), strict=True):
            x, y = ((a["bbox"][i] + a["bbox"][i + 2] / 2) / SIZE for i in (0, 1))
            assert words.startswith(CATEGORIES[a["category_id"] - 1].name)
            assert [side in words for side in ("left", "right", "top", "bottom")] == [x < 0.38, x > 0.62, y < 0.38, y > 0.62]
            assert words.endswith(" middle") == (0.38 <= x <= 0.62 and 0.38 <= y <= 0.62)


def test_scene_i_is_a_function_of_seed_and_i(scenes, tmp_path):
    list(write_scenes(tmp_path / "few", SIZE, 4, seed=3))
    list(write_scenes(tmp_path / "other", SIZE, 4, seed=4))
    for i in range(4):
        name = f"images/{i:06d}.png"
        same = (scenes / name).read_bytes()
        assert (tmp_path / "few" / name).read_bytes() == same
        assert (tmp_path / "other" / name).read_bytes() != same


def test_pairs_kept_apart_are_not_seen_together_in_training(scenes):
    pairs = [(a, b) for a in range(48) for b in range(a) if never_together(a, b)]
    assert len(pairs) == pytest.approx(48 * 47 / 2 / 12, rel=0.3)
    assert all(never_together(b, a) for a, b in pairs)
    instances = table(scenes, "instances")
    for row in instances["images"]:
        kinds = {a["category_id"] - 1 for a in instances["annotations"] if a["image_id"] == row["id"]}
        assert row["split"] == "held_out" or not any({a, b} <= kinds for a, b in pairs)


def test_words():
    assert len({category.name for category in CATEGORIES}) == len({category.codepoints for category in CATEGORIES}) == 48
    by_name = {category.name: category for category in CATEGORIES}
    groups = [(by_name["cat"], 1), (by_name["apple"], 2), (by_name["strawberry"], 3)]
    assert caption(groups, RELATIONS[0]) == "a cat left of two apples, and three strawberries"
    assert counted(by_name["elephant"], 1) == "an elephant"
    assert counted(by_name["bus"], 2) == "two buses"
    assert counted(by_name["sheep"], 4) == "four sheep"


@pytest.mark.parametrize("write", [write_scenes, write_singles])
@pytest.mark.parametrize("wrong", [{"size": 8}, {"n": 0}, {"categories": 1}, {"categories": 49}])
def test_what_is_not_possible_is_refused(tmp_path, write, wrong):
    with pytest.raises(ValueError, match=r"give 32 to 1024 pixels, 2 to 48 categories|n 0: give [14] or more"):
        list(write(tmp_path / "x", **wrong))
    assert not (tmp_path / "x").exists()


def test_single_objects_lie_in_folders_of_their_class(tmp_path):
    """The readers find 48 classes and both parts; every object is as large as promised, and all of it is in the image."""
    assert list(write_singles(tmp_path / "data", 32, 120, seed=5))[-1] == (120, 120)
    listing = list_folder(tmp_path / "data")
    assert listing.problems == []
    assert listing.classes == tuple(sorted(category.name for category in CATEGORIES))
    for entry in listing.entries:
        split, name, file = entry.name.split("/")
        assert (split, name) == (entry.split, listing.classes[entry.label])
        assert name == CATEGORIES[int(file.removesuffix(".png")) % 48].name
    assert {entry.split for entry in listing.entries} == {"train", "held_out"}
    list(write_singles(tmp_path / "few", 32, 4, seed=5))
    for path in (tmp_path / "few").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "data" / path.relative_to(tmp_path / "few")).read_bytes()


def test_a_single_object_is_large_and_whole():
    parts = materials(48, 3)["train"]
    for i in range(12):
        scene = compose_single(parts, i % 3, np.random.default_rng(i))
        (placed,) = scene.objects
        rows, columns = (np.flatnonzero(placed.mask.any(axis=axis)) for axis in (1, 0))
        assert 0.5 * 48 - 2 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 0.9 * 48 + 1
        assert (placed.category, scene.caption) == (i % 3, f"a{'n' * (i % 3 == 2)} {CATEGORIES[i % 3].name}")
        assert scene.image.shape == (48, 48, 3)


@pytest.mark.parametrize("side", [9, 20, 57, 64])
def test_a_stamp_has_the_size_asked_for_and_no_margin(side):
    stamp = materials(64, 2)["train"].stamp
    for degrees in (-25.0, 0.0, 12.5):
        alpha = np.asarray(stamp(0, side, degrees).getchannel("A"))
        assert max(alpha.shape) == side
        assert all(edge.max() > 100 for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="cannot write"):
        list(write_scenes(tmp_path, SIZE, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
