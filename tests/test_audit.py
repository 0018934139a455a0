"""What is a copy and what is not: closed cases of the distances and of the statistics, then `lw audit` on folders of made images."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from latentworks.checkpoints.native import save_folder
from latentworks.data.dataset import ImageDataset
from latentworks.data.sources import FolderSource
from latentworks.data.transforms import Preprocess
from latentworks.metrics.audit import SHOWN, Audited, album, audit, read
from latentworks.metrics.copying import LEVEL, Audit, Match, Verdict, allowed, calibrate, checked, wilson
from latentworks.metrics.measurement import Progress
from latentworks.metrics.near import aligned, kin, reduced, same, thumbnails
from latentworks.metrics.reference import Reference
from toys import diffusion_model, ended, lw

SIDE = 32


class Coarse:
    """A feature network that is quick: the means of 4 x 4 cells."""

    name, hash, dim, resize = "coarse", "0123456789abcdef", 48, "none"

    def embed(self, images):
        return np.stack([np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.float32).ravel() for image in images])


def pictures(n, seed=0):
    """Shapes of many colours, in the middle of a ground of one colour: no two are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    made = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for image in made:
        image[:] = rng.integers(150, 230, 3)
        for _ in range(6):
            (cy, cx), (h, w) = rng.uniform(6, SIDE - 6, 2), rng.uniform(2, 8, 2)
            image[((y - cy) / h) ** 2 + ((x - cx) / w) ** 2 < 1] = rng.integers(0, 256, 3)
    return made


def mirrored(images, rng):
    return images[:, :, ::-1]


def shifted(images, rng):
    return np.stack([np.roll(image, rng.integers(-2, 3, 2), (0, 1)) for image in images])


def recoloured(images, rng):
    factors, offsets = rng.uniform(0.5, 1, (2, len(images), 1, 1, 3))
    return (images * factors + 60 * (offsets - 0.5)).clip(0, 255).astype(np.uint8)


def noisy(images, rng):
    return (images + rng.normal(0, 8, images.shape)).clip(0, 255).astype(np.uint8)


def times(count, often=1):
    """So many images, each nearest to what training shows so often."""
    return np.full((count, 4), often)


def folder(path, **parts):
    """Images in sub-folders of these names."""
    for part, images in parts.items():
        (path / part).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(path / part / f"{i:03}.png")
    return path


def reference(path, split=None):
    source = FolderSource(path, split=split)
    return Reference(f"{path.name} {split}", source, ImageDataset(source, Preprocess(size=SIDE)))


def audited(path, samples, held_out=True) -> Audited:
    named = [(str(i), image) for i, image in enumerate(samples)]
    held = reference(path, "held_out") if held_out else None
    *progress, found = audit(named, len(named), reference(path, "train"), Coarse(), held_out=held, batch=7)
    assert all(isinstance(p, Progress) and 0 < p.done <= p.total for p in progress)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("data"), train=pictures(60, 1), held_out=pictures(45, 2))


def test_an_image_is_compared_where_it_fits_best():
    x, y = reduced(pictures(2))
    inner, windows = slice(2, SIDE - 2), []
    for axes in ((), (1,), (2,), (1, 2)):
        for i, j in itertools.product(range(5), range(5)):
            windows.append(y[:, i : i + SIDE - 4, j : j + SIDE - 4].flip(axes))
    a, b = x[:, inner, inner], torch.stack(windows)
    plain = b[:25][(a - b[:25]).square().mean((1, 2, 3)).argmin()]
    shapes = [np.mean([np.corrcoef(p.flatten(), q.flatten())[0, 1] for p, q in zip(a, window, strict=True)]) for window in b]
    found = aligned(x, y[None])[:, 0]
    assert float(found[0]) == pytest.approx(worst(a - plain), abs=1e-5)
    for value, window in ((found[1], b[np.argmax(shapes[:25])]), (found[2], b[25 + np.argmax(shapes[25:])])):
        gains = [np.polyfit(q.flatten(), p.flatten(), 1) for p, q in zip(a, window, strict=True)]
        fitted = torch.stack([gain * q + offset for (gain, offset), q in zip(gains, window, strict=True)])
        if all(0.4 < gain < 2.5 for gain, _ in gains):
            assert float(value) == pytest.approx(worst(a - fitted), abs=0.02)  # ours takes very flat channels for alike


def worst(difference):
    """The four worst of cells of 2 x 2 pixels, at every pixel."""
    cells = (difference[:, 1:, 1:] + difference[:, :-1, 1:] + difference[:, 1:, :-1] + difference[:, :-1, :-1]) / 4
    return float(cells.square().mean(0).sqrt().flatten().sort().values[-4:].mean())


@pytest.mark.parametrize("change", [mirrored, shifted, recoloured, noisy])
def test_a_changed_image_stays_near_itself(change):
    images = pictures(12)
    changed, others = reduced(change(images, np.random.default_rng(0))), reduced(images)
    space = {"mirrored": 2, "recoloured": 1}.get(change.__name__, 0)
    for i, x in enumerate(changed):
        found = aligned(x, others)[space]
        assert found.argmin() == i
        assert found[i] < 0.5 * found[torch.arange(12) != i].min()


def test_an_image_larger_than_needed_is_reduced_and_a_grey_one_too():
    large = np.kron(pictures(1)[0], np.ones((4, 4, 1), np.uint8))
    assert reduced(large[None]).shape == (1, 3, 64, 64)
    x = reduced(large[None, ..., :1])
    assert aligned(x[0], x).max() < 0.5
    assert aligned(x[0], x)[:2].max() == pytest.approx(0, abs=1e-5)


def test_the_same_picture_saved_once_more_is_no_other_picture_but_counted(tmp_path):
    images = pictures(60, 1)
    thumbs = thumbnails(reduced(images))
    again = (images[3] + np.random.default_rng(0).integers(-2, 3, images[3].shape)).clip(0, 255).astype(np.uint8)
    assert same(thumbnails(reduced(again[None]))[0], thumbs).nonzero().flatten().tolist() == [3]
    path = folder(tmp_path, train=[*images, again, again], held_out=images[:1])
    found = ended(album(reference(path, "train"), Coarse(), "training images"))
    assert kin(found.features[3], found.pixels([3])[0], found, None).times[:3].tolist() == [3, 3, 3], "two of them equal"


def test_equal_images_are_one_that_is_counted(tmp_path):
    images = pictures(5)
    path = folder(tmp_path, train=[*images, images[2], images[2]], held_out=images[:1])
    found = ended(album(reference(path, "train"), Coarse(), "training images"))
    assert found.names == [f"train/00{i}.png" for i in range(5)]
    assert found.times.tolist() == [1, 1, 3, 1, 1]
    assert found.features.shape == (5, 48)
    assert torch.equal(found.pixels([4, 2]), reduced(images[[4, 2]]))
    near = kin(found.features[2], found.pixels([2])[0], found, None)
    assert near.places[:3] == [2, 2, 2]
    assert near.times[:3].tolist() == [3, 3, 3]
    assert (near.first[:3] < 1e-2).all()
    assert (near.following > 0.1).all()
    alone = kin(found.features[2], found.pixels([2])[0], found, None, of=found)
    assert 2 not in alone.places


def test_a_folder_of_damaged_images_is_refused(tmp_path):
    path = folder(tmp_path, train=pictures(3))
    images = reference(path, "train")
    for file in path.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no images to measure"):
        ended(album(images, Coarse(), "training images"))


def test_the_rule_keeps_to_its_level_on_images_it_has_not_seen():
    """Where nearness in one space says nothing of another, which is the worst case."""
    rng = np.random.default_rng(0)
    for count in (20, 40, 100, 400):
        flagged = [calibrate(rng.random((count, 4)), times(count)).copies(rng.random((500, 4)), times(500)).mean() for _ in range(60)]
        assert np.mean(flagged) <= LEVEL + 0.01
        assert allowed(count) / count <= LEVEL
        wrong = checked(rng.random((count, 4)), times(count))
        assert count == 20 if wrong is None else wrong <= LEVEL * count + 3 * (LEVEL * count) ** 0.5
    assert np.mean(flagged) < 0.047  # aims lower where it can
    with pytest.raises(ValueError, match=r"18 real images are too few .* 20 are needed"):
        calibrate(np.ones((18, 4)), times(18))


def test_a_copy_in_one_space_is_a_copy_and_twins_in_it_do_not_hide_those_of_another():
    real = np.random.default_rng(0).uniform(0.2, 1, (200, 4))
    real[:20, 3] = 0  # a tenth of real images are mirror images of training images
    rule = calibrate(real, times(200))
    new = np.array([[0.02, 0.9, 0.9, 0.9], [0.9, 0.1, 0.9, 0.9], [0.9, 0.9, 0.1, 0.9], [0.9, 0.9, 0.9, 0.01], [0.5, 0.5, 0.5, 0.5]])
    assert rule.copies(new, times(5)).tolist() == [True, True, True, False, False]
    assert checked(real, times(200)) <= LEVEL * 200
    assert checked(real[:20], times(20)) is None, "too few without any of them"
    assert not calibrate(np.zeros((40, 4)), times(40)).copies(np.zeros((3, 4)), times(3)).any(), "all real images are training images"


def test_what_training_repeats_is_a_copy_at_a_larger_ratio_and_the_rule_keeps_to_its_level():
    """With a fifth of real images nearest to repeated ones."""
    rng = np.random.default_rng(0)
    repeats = [np.where(rng.random((500, 1)) < 0.2, 50, 1) * times(500) for _ in range(121)]
    rules = [calibrate(rng.random((500, 4)), known) for known in repeats[:60]]
    flagged = [rule.copies(rng.random((500, 4)), known).mean() for rule, known in zip(rules, repeats[60:120], strict=True)]
    assert np.mean(flagged) <= LEVEL
    assert checked(rng.random((500, 4)), repeats[120]) <= LEVEL * 500 + 3 * (LEVEL * 500) ** 0.5
    rough = np.full((1, 4), 0.03)
    found = [np.mean([rule.copies(rough, times(1, often))[0] for rule in rules]) for often in (1, 50)]
    assert found[0] < 0.1
    assert found[1] > 0.9


@pytest.mark.parametrize(("count", "of"), [(0, 10), (3, 10), (500, 500), (17, 400)])
def test_intervals_are_wilsons(count, of):
    expected = binomtest(count, of).proportion_ci(method="wilson")
    assert wilson(count, of) == pytest.approx((expected.low, expected.high), abs=1e-4)


@pytest.mark.parametrize("change", [mirrored, shifted, recoloured, noisy])
def test_copies_are_found_however_changed(data, change):
    found, _ = audited(data, change(pictures(60, 1)[:30], np.random.default_rng(0)))
    assert found.copies >= 29
    right = [verdict for verdict in found.verdicts if verdict.copy and verdict.original == f"train/{int(verdict.name):03}.png"]
    assert len(right) >= 0.95 * found.copies
    assert "mostly repeats its training images" in found.words
    assert found.false_alarms <= LEVEL * found.real


def test_new_images_are_no_copies(tmp_path):
    """On average: with few real images one folder's rule is stricter than another's."""
    flagged = 0
    for seed in range(6):
        path = folder(tmp_path / str(seed), train=pictures(60, 100 + seed), held_out=pictures(45, 200 + seed))
        found, suspects = audited(path, pictures(40, 300 + seed))
        flagged += found.copies
    assert flagged <= LEVEL * 6 * 40
    assert found.words.startswith("no sign of memorisation")
    assert (found.real, found.what, found.notes) == (45, "held-out images", [])
    assert len(suspects) == SHOWN
    scores = [suspect.verdict.score for suspect in suspects]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == max(verdict.score for verdict in found.verdicts)
    assert suspects[0].pictures.shape == (3, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("copies", "of", "said"),
    [
        (1, 8, "too few samples to tell"),
        (0, 11, "too few samples to tell"),
        (0, 12, "no sign of memorisation"),
        (2, 2, "it repeats some of"),
    ],
)
def test_few_samples_say_little(copies, of, said):
    match = {"pixels": Match("a", 0.1, 0.1, 2.0)}
    verdicts = [Verdict(str(i), i < copies, 2.0, "pixels", match) for i in range(of)]
    found = Audit(verdicts, calibrate(np.random.default_rng(0).random((20, 4)), times(20)), 20, "held-out images", None, {"a": 1})
    assert found.words.startswith(said)
    assert "which cannot be copies" not in found.words, "20 real images are too few to see how many would be taken for copies"


def test_repeated_images_are_named_with_their_copies(tmp_path):
    repeated, others = pictures(4, 5), pictures(40, 6)
    path = folder(tmp_path, train=[*repeated, *repeated, *repeated, *others], held_out=pictures(45, 7))
    samples = [*noisy(np.repeat(repeated, 5, axis=0), np.random.default_rng(0)), *pictures(30, 8)]
    found, _ = audited(path, samples)
    assert sum(verdict.copy for verdict in found.verdicts[:20]) >= 18
    assert sum(verdict.copy for verdict in found.verdicts[20:]) <= 3
    named = {one.name: (one.copies, one.times) for one in found.copied}
    assert [named[f"train/{i:03}.png"] for i in range(4)] == [(5, 3)] * 4
    assert "repeats some of its training images" in found.words


def test_without_held_out_images_training_images_set_the_rule(tmp_path):
    images = pictures(50, 1)
    path = folder(tmp_path, train=[*images, images[0]])
    *_, (found, _) = audit([("a", images[7]), ("b", pictures(1, 9)[0])], 2, reference(path), Coarse())
    assert [verdict.copy for verdict in found.verdicts] == [True, False]
    assert (found.real, found.what) == (50, "training images beside the other ones")
    assert found.notes == ["0 held-out images are too few to set the rule, for which 40 are needed: training images set it"]


def test_held_out_images_that_are_training_images_set_nothing(tmp_path):
    images = pictures(40, 1)
    path = folder(tmp_path, train=images, held_out=[*images[:5], *pictures(45, 2)])
    found, _ = audited(path, images[:6])
    assert (found.copies, found.real) == (6, 45)
    assert found.notes == ["5 held-out images are training images too, pixel by pixel: they are left out of the comparison"]


def test_an_audit_is_plain_values(data):
    found, _ = audited(data, [*pictures(3, 1), *pictures(2, 3)])
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (values["samples"], values["copies"], values["share"]) == (5, 3, 0.6)
    assert values["copied"] == [{"name": f"train/00{i}.png", "copies": 1, "times": 1} for i in range(3)]
    assert set(values["images"][0]["nearest"]) == {"features", "pixels", "recoloured", "mirrored"}
    assert set(values) - set(found.summary()) == {"images"}


def test_real_images_pass_the_first_stage_that_copies_passed(data):
    """One that transposes, after which copies are nowhere near their originals."""

    class Transposing(torch.nn.Module):
        mean = torch.zeros(1)

        def forward(self, x):
            return SimpleNamespace(image=x.transpose(2, 3))

    samples = [(str(i), image.transpose(1, 0, 2)) for i, image in enumerate(pictures(60, 1)[:20])]
    found = []
    for through in (None, Transposing()):
        parts = reference(data, "train"), Coarse()
        *_, (result, _) = audit(samples, 20, *parts, held_out=reference(data, "held_out"), through=through)
        found.append(result.copies)
    assert found[0] <= 3
    assert found[1] == 20


def test_images_of_a_folder_are_read_in_order(data):
    names, images = zip(*read(reference(data, "held_out"), 7), strict=True)
    assert names == tuple(f"held_out/{i:03}.png" for i in range(45))
    np.testing.assert_array_equal(np.stack(images), pictures(45, 2))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny model's folder, and a quick network in place of the real one."""
    model, recipe = diffusion_model(name="unconditional-64")
    save_folder(tmp_path / "model", model, recipe)
    monkeypatch.setattr("latentworks.metrics.features.Lite0Features", Coarse)
    return tmp_path / "model"


def test_a_model_is_audited_at_the_command_line(tiny, data, tmp_path, monkeypatch, capsys):
    assert lw(monkeypatch, capsys, "evaluate", tiny, "--data", data, "-n", 4, "--steps", 1, "--json", tmp_path / "card.json")[0] == 0
    arguments = ("audit", tiny, "--data", data, "--batch", 4, "--card", tmp_path / "card.json")
    code, out, err = lw(monkeypatch, capsys, *arguments, "-n", 6, "-o", tmp_path / "drawn")
    assert code == 0, err
    values = json.loads((tmp_path / "drawn" / "audit.json").read_text())
    assert [image["name"] for image in values["images"]] == [f"seed {i}" for i in range(6)]
    assert out.startswith(f"{values['model']}: {values['verdict']}")
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["audit"]["samples"] == 6
    assert values["weights"] == card["model"]["weights"]
    assert card["audit"]["drawn"] == values["drawn"] == {"n": 6, "seed": 0, "sampler": "dpmpp_2m", "steps": 2, "guidance": 1.0}
    assert "audit" in (tmp_path / "card.md").read_text().lower()
    with Image.open(tmp_path / "drawn" / "suspects.png") as sheet:
        assert sheet.width > 6 * 128

    (tmp_path / "facts.json").write_text('{"data": "that of other files"}')  # beside the model, as in a run
    again = lw(monkeypatch, capsys, *arguments, "-n", 6, "-o", tmp_path / "again", "--batch", 3)
    assert again[0] == 0
    assert "note: --data: names, sizes or times of its files are not those of training" in again[1]
    assert "note: --data" not in out
    assert json.loads((tmp_path / "again" / "audit.json").read_text())["images"] == values["images"]

    copies = folder(tmp_path / "copies", a=pictures(9, 1))
    (copies / "a" / "damaged.png").write_bytes((copies / "a" / "000.png").read_bytes()[:200])
    code, out, err = lw(monkeypatch, capsys, *arguments, "--images", copies, "-o", tmp_path / "read")
    assert code == 0, err
    assert "note: damaged images were left out: 1 (a/damaged.png)" in out
    assert "9 of 9 samples are copies" in out
    assert "  1 of train/000.png" in out
    values = json.loads((tmp_path / "read" / "audit.json").read_text())
    assert (values["given"], len(values["images"])) == ("copies", 9)


def test_mistakes_are_one_line_and_nothing_is_written(tiny, data, tmp_path, monkeypatch, capsys):
    few = folder(tmp_path / "few", train=pictures(12))
    assert lw(monkeypatch, capsys, "evaluate", tiny, "--data", data, "-n", 4, "--steps", 1, "--json", tmp_path / "own.json")[0] == 0
    card = json.loads((tmp_path / "own.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**card, "model": {**card["model"], "weights": "abcdef0123456789"}}))
    (tmp_path / "own.card").write_bytes((tmp_path / "own.json").read_bytes())
    for arguments, said in (
        (("--data", few), "12 real images are too few"),
        (("--data", tmp_path / "none"), "does not exist"),
        (("--data", data, "-n", 0), "n: "),
        (("--data", data, "--images", tmp_path / "none"), "does not exist"),
        (("--data", data, "--images", few, "--steps", 3), "--steps 3: --images are there already"),
        (("--data", data, "--seed", -1), "--seed -1"),
        (("--data", data, "--card", tmp_path / "none.json"), "none.json"),
        (("--data", data, "--card", tmp_path / "other.json"), "is of other weights (unconditional-64 abcdef01)"),
        (("--data", data, "--card", tmp_path / "own.card"), "a card's name ends in .json"),
        (("--data", data, "-o", tmp_path / "own.json"), "cannot write"),
    ):
        code, _, err = lw(monkeypatch, capsys, "audit", tiny, "-o", tmp_path / "out", *arguments)
        assert code == 2
        assert said in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
