"""Boxes, captions, label maps and masks beside images, in the layouts that real sets have."""

import json

import numpy as np
import pytest
from PIL import Image

from latentworks.data.annotations import is_yolo
from latentworks.data.listing import list_folder
from latentworks.data.scenes import write_scenes


def picture(path, size=(40, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size[::-1], 3), 200, np.uint8)).save(path)


def coco(path, images, annotations=(), categories=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": 10 + i, "file_name": name, "width": 40, "height": 20} for i, name in enumerate(images)]
    path.write_text(json.dumps({"images": rows, "annotations": list(annotations), "categories": list(categories)}))


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def real_coco(tmp_path):
    """As the set of 2017 is laid out: two folders of images, one of tables, ids with gaps, a crowd."""
    for name in ("train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg"):
        picture(tmp_path / name)
    boxes = [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [30.0, 0.0, 12.0, 20.0], "iscrowd": 1},
    ]
    coco(tmp_path / "annotations/instances_train2017.json", ["a.jpg", "b.jpg"], boxes, CATEGORIES)
    coco(tmp_path / "annotations/instances_val2017.json", ["c.jpg"], [], CATEGORIES)
    captions = [{"id": 1, "image_id": 10, "caption": "A dog \n and a cat."}, {"id": 2, "image_id": 10, "caption": "Two animals."}]
    coco(tmp_path / "annotations/captions_train2017.json", ["a.jpg", "b.jpg"], captions)
    (tmp_path / "annotations/person_keypoints_train2017.json").write_text("{}")
    return tmp_path


def test_a_coco_folder_works_unchanged(real_coco):
    listing = list_folder(real_coco)
    assert listing.problems == []
    assert listing.categories == ("cat", "dog")
    assert listing.classes == (), "the folders are parts, not classes"
    a, b, c = listing.entries
    assert [entry.split for entry in (a, b, c)] == ["train", "train", "held_out"]
    assert a.text == ("A dog and a cat.", "Two animals.")
    assert a.boxes == (
        {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5, "label": 1},
        {"x": 0.75, "y": 0.0, "width": 0.25, "height": 1.0, "label": 0, "group": True},
    )
    assert b.boxes == c.boxes == ()


def test_a_table_of_one_part_leaves_the_split_to_the_names(real_coco):
    (real_coco / "annotations/instances_val2017.json").unlink()
    assert {entry.split for entry in list_folder(real_coco).entries} == {"train"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_id": 99}, "is not COCO's format: KeyError 99"),
        ({"bbox": [50, 5, 20, 10]}, "annotation 1 has bbox .* outside its image of 40 x 20"),
        ({"bbox": "all"}, "is not COCO's format"),
        ({"category_id": 5}, "is not COCO's format: KeyError 5"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path, change, complaint):
    picture(tmp_path / "a.png")
    entry = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 5, 20, 10], **change}
    coco(tmp_path / "instances.json", ["a.png"], [entry], CATEGORIES)
    (problem,) = list_folder(tmp_path).problems
    assert "instances.json" in problem
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(problem)


def test_composed_scenes_are_such_a_folder(tmp_path):
    list(write_scenes(tmp_path / "scenes", 32, 24))
    listing = list_folder(tmp_path / "scenes")
    assert listing.problems == []
    assert len(listing.entries) == 24
    assert len(listing.categories) == 48
    for entry in listing.entries:
        assert 3 <= len(entry.boxes) <= 8
        assert entry.segmentation == entry.name.replace("images", "labels")
        main, where = entry.text
        assert any(words in main for words in (" left of ", " right of ", " above ", " below "))
        assert where.count(", ") == len(entry.boxes) - 1


def test_yolo_folders_and_files_beside_images(tmp_path):
    for name in ("images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg"):
        picture(tmp_path / "set" / name)
    for name, text in (("train/a", "1 0.5 0.5 0.5 1\n0 1.0 0.5 0.5 0.5\n"), ("train/b", ""), ("val/c", "0 .5 .5 1e-1 .1")):
        (tmp_path / f"set/labels/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/labels/{name}.txt").write_text(text)
    (tmp_path / "set/data.yaml").write_text("names: {0: cat, 1: dog}\n")
    listing = list_folder(tmp_path / "set")
    assert listing.problems == []
    assert listing.categories == ("cat", "dog")
    assert listing.entries[0].boxes == (
        {"x": 0.25, "y": 0.0, "width": 0.5, "height": 1.0, "label": 1},
        {"x": 0.75, "y": 0.25, "width": 0.25, "height": 0.5, "label": 0},
    )
    assert listing.entries[1].boxes == ()
    picture(tmp_path / "flat/a.png")
    picture(tmp_path / "flat/b.png")
    (tmp_path / "flat/a.txt").write_text("2 0.5 0.5 0.5 0.5")
    (tmp_path / "flat/b.txt").write_text("a caption of 5 words")
    flat = list_folder(tmp_path / "flat")
    assert flat.categories == ("0", "1", "2")
    assert [(entry.text, entry.boxes is None) for entry in flat.entries] == [((), False), (("a caption of 5 words",), True)]
    (tmp_path / "flat/a.txt").write_text("0 2.5 0.5 0.5 0.5")
    assert "has no area inside its image" in list_folder(tmp_path / "flat").problems[0]


def test_too_few_names_are_noticed(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("2 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    listing = list_folder(tmp_path)
    assert "names 2 classes, but boxes have classes up to 2" in listing.problems[0]


def test_is_yolo():
    assert is_yolo("0 .1 0.2 1 1e-3\n\n12 0 0 0 0\n")
    assert not is_yolo("")
    assert not is_yolo("0 1 2 3")
    assert not is_yolo("5 0.1 0.2 0.3 cats")


def test_label_maps_and_masks_are_no_images(tmp_path):
    for name in ("images/a.jpg", "images/b.png", "label_maps/a.png", "images/a_mask.png"):
        picture(tmp_path / name)
    a, b = list_folder(tmp_path).entries
    assert (a.name, a.segmentation, a.mask) == ("images/a.jpg", "label_maps/a.png", "images/a_mask.png")
    assert (b.name, b.segmentation, b.mask) == ("images/b.png", None, None)
