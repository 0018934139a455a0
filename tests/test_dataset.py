"""Batches, order and augmentation as functions of (seed, step); damaged files."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.completion import extras_of as carried
from latentworks.conditioners import TextConfig
from latentworks.data.dataset import Extras, ImageDataset, change_words, indices_for
from latentworks.data.sources import FolderSource
from latentworks.data.transforms import Preprocess, to_tensor
from toys import scenes_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            value = np.arange(12 * 8 * 3).reshape(12, 8, 3) % 200 + i + (20 if name == "b" else 0)
            Image.fromarray(value.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i}\nalias {i}\n")
    return tmp_path


RANDOM = Preprocess(size=8, crop_size=4, crop="random", flip=True)


def test_order_needs_no_state():
    epochs = [i for step in range(15) for i in indices_for(10, 0, step, 4)]
    for epoch in range(6):
        assert sorted(epochs[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert epochs[:10] != epochs[10:20]
    assert indices_for(10, 0, 7, 4) == epochs[28:32]
    assert indices_for(10, 1, 0, 4) != epochs[:4] or indices_for(10, 1, 1, 4) != epochs[4:8]
    assert len(indices_for(3, 0, 0, 8)) == 8, "a batch may be larger than the data"


def test_a_plain_batch(folder):
    dataset = ImageDataset(FolderSource(folder), Preprocess(size=8))
    batch = dataset.batch([7, 0])
    image = np.asarray(Image.open(folder / "b" / "2.png"))[2:10]
    torch.testing.assert_close(batch["image"][0], to_tensor(image[None])[0], rtol=0, atol=0)
    assert batch["text"] == ["b 2", "a 0"]
    assert batch["label"].tolist() == [1, 0]
    assert batch["index"].tolist() == [7, 0]


def test_a_sample_depends_on_seed_step_and_index_only(folder):
    source = FolderSource(folder)
    dataset = ImageDataset(source, RANDOM, seed=1)
    both, alone = dataset.batch([3, 8], step=5), ImageDataset(source, RANDOM, seed=1, budget=0).batch([8], step=5)
    assert torch.equal(both["image"][1], alone["image"][0])
    assert both["text"][1] == alone["text"][0]
    assert not all(torch.equal(dataset.batch([3], step=s)["image"], both["image"][:1]) for s in range(4))
    assert {dataset.batch([3], step=s)["text"][0] for s in range(20)} == {"a 3", "alias 3"}
    assert {ImageDataset(source, RANDOM, captions="main").batch([3], step=s)["text"][0] for s in range(20)} == {"a 3"}


def test_the_budget_bounds_memory_not_results(folder):
    source = FolderSource(folder)
    small = ImageDataset(source, RANDOM, budget=3 * 12 * 8 * 3)
    large = ImageDataset(source, RANDOM)
    assert [p.done for p in small.load()] == [10]
    list(large.load())
    assert (len(small._images), len(large._images)) == (3, 10)
    assert torch.equal(small.batch(range(10), step=2)["image"], large.batch(range(10), step=2)["image"])


def test_damaged_files_are_skipped_counted_and_named(folder):
    for name in ("a/3.png", "b/4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    dataset = ImageDataset(FolderSource(folder), Preprocess(size=8))
    batch = dataset.batch([3, 9, 4])
    assert dataset.skipped == ["a/3.png", "b/4.png"]
    assert batch["text"] == ["a 4", "a 0", "a 4"]
    assert torch.equal(batch["image"][0], batch["image"][2])
    assert batch["index"].tolist() == [3, 9, 4]
    again = ImageDataset(FolderSource(folder), Preprocess(size=8))
    list(again.load())
    assert again.skipped == dataset.skipped
    assert [b["index"].tolist() for b in again.batches(5)] == [[0, 1, 2, 4, 5], [6, 7, 8]]


def test_of_many_images_a_part_is_read_evenly_spread(folder):
    dataset = ImageDataset(FolderSource(folder), Preprocess(size=8))
    every = list(range(len(dataset)))
    for most, kept in ((None, every), (len(every), every), (len(every) - 1, every[::2]), (3, every[:: -(-len(every) // 3)])):
        assert [i for b in dataset.batches(4, most) for i in b["index"].tolist()] == kept


def test_all_damaged(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="not one image can be read"):
        ImageDataset(FolderSource(tmp_path, channels=3), Preprocess(size=8)).batch([0])
    with pytest.raises(ValueError, match="not one image can be read"):
        FolderSource(tmp_path)


def test_channels_must_agree(folder):
    with pytest.raises(ValueError, match="channels: the images have 3, the settings say 1"):
        ImageDataset(FolderSource(folder), Preprocess(size=8, channels=1))
    assert ImageDataset(FolderSource(folder, channels=1), Preprocess(size=8, channels=1)).batch([0])["image"].shape == (1, 1, 8, 8)


def test_fields_that_are_not_there_are_left_out(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    assert set(ImageDataset(FolderSource(tmp_path), Preprocess(size=8)).batch([0])) == {"image", "index"}


def extras_of(path, *, seed=0, size=20, **extras):
    return ImageDataset(FolderSource(path), Preprocess(size=size), seed=seed, extras=Extras(**extras))


def test_words_are_left_out_and_put_in_any_order_in_training_only(folder):
    extras = carried([TextConfig(word_dropout=0.5, word_shuffle=0.5)])
    dataset = ImageDataset(FolderSource(folder), Preprocess(size=8), extras=extras)
    read = [dataset.batch([3], step=step)["text"][0] for step in range(60)]
    assert set(read) == {"a 3", "3 a", "a", "3", "alias 3", "3 alias", "alias"}
    assert read == [dataset.batch([7, 3], step=step)["text"][1] for step in range(60)], "a function of seed, step and index"
    assert dataset.batch([3])["text"] == ["a 3"], "what is measured reads the caption as it is"


def test_changed_words_are_as_often_as_asked():
    rng, caption = np.random.default_rng(0), "man with dark skin tone"
    changed = [change_words(caption, 0.6, 0.0, rng).split() for _ in range(5000)]
    lengths = np.bincount([len(words) for words in changed], minlength=6) / len(changed)
    np.testing.assert_allclose(lengths, [0, 0.12, 0.12, 0.12, 0.12, 0.4 + 0.12], atol=0.02)
    assert all(words == [word for word in caption.split() if word in words] for words in changed), "in order"
    assert {words[0] for words in changed if len(words) == 1} == set(caption.split()), "any of them"
    shuffled = [change_words(caption, 0.0, 0.3, rng) for _ in range(2000)]
    assert all(sorted(words.split()) == sorted(caption.split()) for words in shuffled)
    assert abs(np.mean([words != caption for words in shuffled]) - 0.3) < 0.05
    assert {change_words("a b", 1.0, 0.0, rng) for _ in range(20)} == {"a", "b", "a b"}, "one word stays"
    assert change_words("", 1.0, 1.0, rng) == ""


def test_boxes_are_the_largest_in_an_order_of_their_own(tmp_path):
    dataset = extras_of(scenes_folder(tmp_path / "data"), boxes=2)
    plain = dataset.batch([4])["boxes"][0]
    assert [box["label"] for box in plain] == [1, 0], "bars are larger"
    orders = [tuple(box["label"] for box in dataset.batch([4], step=step)["boxes"][0]) for step in range(8)]
    assert set(orders) == {(0, 1), (1, 0)}
    assert orders == [tuple(box["label"] for box in dataset.batch([4], step=step)["boxes"][0]) for step in range(8)]
    assert [box["label"] for box in extras_of(tmp_path / "data", boxes=1).batch([4])["boxes"][0]] == [1]


def test_label_maps_lie_on_their_images_and_a_damaged_one_says_nothing(tmp_path):
    folder = scenes_folder(tmp_path / "data")
    (folder / "labels" / "03.png").write_bytes(b"no png")
    dataset = extras_of(folder, segmentation=True)
    batch = dataset.batch([2, 3])
    red = batch["image"][0, 0] > 0.5
    assert torch.equal(batch["segmentation"][0] == 1, red)
    assert (batch["segmentation"][1] == -1).all()
    assert dataset.skipped == ["labels/03.png"]
    small = extras_of(folder, size=10, segmentation=True).batch([2])["segmentation"][0]
    assert ((small == 1) != (torch.nn.functional.avg_pool2d(red[None, None].float(), 2)[0, 0] > 0.5)).float().mean() < 0.1


def test_small_images_and_holes_are_drawn_by_seed_step_and_index(tmp_path):
    folder = scenes_folder(tmp_path / "data")
    dataset = extras_of(folder, low_res=("bsr", 4), holes=True)
    batch, again, other = dataset.batch([1, 6], 3), extras_of(folder, low_res=("bsr", 4), holes=True).batch([6], 3), dataset.batch([6], 4)
    assert batch["low_res"].shape == (2, 3, 5, 5)
    assert batch["mask"].shape == (2, 1, 20, 20)
    for field in ("low_res", "mask"):
        assert torch.equal(batch[field][1], again[field][0])
        assert not torch.equal(batch[field][1], other[field][0])
    assert torch.equal(dataset.batch([6])["mask"], dataset.batch([6])["mask"]), "measured on the same hole each time"


def test_an_images_own_hole_is_what_it_is_measured_on(tmp_path):
    folder = scenes_folder(tmp_path / "data", n=2)
    hole = np.zeros((20, 20), np.uint8)
    hole[3:9, 5:15] = 255
    Image.fromarray(hole).save(folder / "images" / "00_mask.png")
    dataset = extras_of(folder, holes=True)
    assert len(dataset) == 2
    assert np.array_equal(dataset.batch([0])["mask"][0, 0].numpy(), hole > 0)
    assert not np.array_equal(dataset.batch([0], step=1)["mask"][0, 0].numpy(), hole > 0)
