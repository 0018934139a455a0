"""The evaluation card: what it says, that it repeats, and that whatever differs is named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.conditioners import LabelConfig
from latentworks.data import transforms
from latentworks.first_stage import IdentityConfig, KLConfig, VQConfig
from latentworks.metrics import features
from latentworks.metrics.card import Card, add_audit, check_name, facts, read_card, write_card
from latentworks.metrics.reference import fingerprint, reference_images
from latentworks.metrics.task import wanted_of
from test_evaluate import SMALL, TEXT, Means, build, diffusion_recipe, first_stage_recipe, lw, shapes
from toys import ended

TEXT_MODEL = diffusion_recipe([TEXT])
FIRST_STAGE = first_stage_recipe(VQConfig(**SMALL, codes=16))


class Bilinear(Means):
    resize = "bilinear to 299"


class OtherWeights(Means):
    hash = "fedcba9876543210"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A feature network that takes no time."""
    torch.manual_seed(0)
    monkeypatch.setattr(features, "Lite0Features", Means)


class Bench:
    """A folder, a model, and `lw evaluate` on both."""

    def __init__(self, tmp_path, monkeypatch, capsys, recipe):
        self.folder, self.model, self.card, self.recipe = shapes(tmp_path), tmp_path / "model", tmp_path / "card.json", recipe
        self.tools = (monkeypatch, capsys)
        save_folder(self.model, build(recipe), recipe)

    def lw(self, *arguments):
        return lw(*self.tools, self.model, "--data", self.folder, *arguments)

    def write(self, *arguments):
        code, _, err = self.lw("--json", self.card, *arguments)
        assert (code, err) == (0, "")
        return json.loads(self.card.read_text())

    def repeat(self, *arguments):
        return self.lw("--card", self.card, *arguments)

    def edit(self, values):
        self.card.write_text(json.dumps(values))


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    return Bench(tmp_path, monkeypatch, capsys, TEXT_MODEL)


DRAW = ("-n", 5, "--split", "all")


@pytest.mark.parametrize("recipe", [TEXT_MODEL, FIRST_STAGE, first_stage_recipe(IdentityConfig())])
def test_a_second_run_gives_the_same_file(tmp_path, monkeypatch, capsys, recipe):
    bench = Bench(tmp_path, monkeypatch, capsys, recipe)
    bench.write(*DRAW, "--bootstrap", 3, "--batch", 4)
    code, out, err = bench.repeat("--json", tmp_path / "again.json")
    assert (code, err) == (0, "")
    *figures, verdict = out.splitlines()
    assert verdict == f"agrees: all {len(figures)} figures are equal, to the last bit"
    assert all(line.endswith(": equal") for line in figures)
    for suffix in (".json", ".md"):
        text = bench.card.with_suffix(suffix).read_text()
        assert text == (tmp_path / "again").with_suffix(suffix).read_text()
        assert str(tmp_path) not in text
    json.loads(bench.card.read_text(), parse_constant=pytest.fail)  # an infinite PSNR is no number of JSON
    assert read_card(bench.card).measurements[0].value > 0


def test_it_says_everything(bench):
    written = bench.write("-n", 5, "--split", "all", "--sampler", "ddim", "--steps", 3, "--eta", 0.5, "--seed", 7, "--bootstrap", 2)
    drawing = written["drawing"]
    assert "shuffled by the seed" in drawing.pop("order")
    assert drawing == {"n": 5, "conditions": ["text"], "sampler": "ddim", "steps": 3, "eta": 0.5, "guidance": 2.0, "seed": 7}
    assert written["images"] == {"size": 16, "crop": 16, "resize": "bicubic (Pillow's)", "channels": 3}
    assert written["network"] == {"name": "means", "hash": "0123456789abcdef", "dim": 6, "resize": "none"}
    assert (written["data"]["folder"], written["data"]["reference"]["split"], written["data"]["reference"]["images"]) == (
        "shapes",
        "all",
        12,
    )
    assert written["versions"]["torch"] == torch.__version__
    assert (written["machine"]["threads"], written["machine"]["device"], written["bootstrap"]) == (1, "cpu", 2)
    card = read_card(bench.card)
    assert (wanted_of(card).steps, wanted_of(card).eta, wanted_of(card).split, wanted_of(card).seed) == (3, 0.5, "all", 7)
    page = bench.card.with_suffix(".md").read_text()
    assert all(f"- {fact.title}: {fact.value}\n" in page for fact in facts(card))
    assert all(f"| {one.name} | {one.value:.4g}" in page for one in card.measurements)
    assert "fewer than 10,000 images: compare only at equal n" in page


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_eta_is_said_of_samplers_that_have_one(bench, sampler):
    written = bench.write(*DRAW, "--sampler", sampler, "--steps", 2)
    assert written["drawing"]["eta"] == {"ddpm": 1.0, "dpmpp_2m": None}[sampler]
    assert bench.repeat()[0] == 0


def bilinear(image, height, width):
    channels = [Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(image.shape[2])]
    return np.stack(channels, axis=-1)


def change_weights(bench, monkeypatch):
    save_folder(bench.model, build(bench.recipe), bench.recipe)  # other random ones


def change_a_picture(bench, monkeypatch):
    path = bench.folder / "a" / "03.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 0
    Image.fromarray(pixels).save(path)


CHANGES = {
    "resize filter of the images": lambda bench, monkeypatch: monkeypatch.setattr(transforms, "resize", bilinear),
    "resize filter before the feature network": lambda bench, monkeypatch: monkeypatch.setattr(features, "Lite0Features", Bilinear),
    "hash of its weights": lambda bench, monkeypatch: monkeypatch.setattr(features, "Lite0Features", OtherWeights),
    "hash of the weights (model.safetensors)": change_weights,
    "hash of the files (data, reference)": change_a_picture,
    "hash of their captions, classes and the like (data, reference)": lambda bench, monkeypatch: (bench.folder / "a" / "03.txt").write_text(
        "another caption"
    ),
}


@pytest.mark.parametrize("title", CHANGES)
def test_what_differs_is_named_before_the_figures(bench, monkeypatch, title):
    bench.write(*DRAW)
    CHANGES[title](bench, monkeypatch)
    code, out, err = bench.repeat()
    assert (code, err) == (1, "")
    lines = out.splitlines()
    named = [line for line in lines if " differs: card " in line]
    assert lines[: len(named)] == named
    assert any(line.startswith(f"{title} differs: card ") for line in named)
    assert title in lines[-1]
    assert lines[-1].startswith("does not agree: it is another measurement, which differs in ")
    if title == "resize filter of the images":
        assert named[0] == "resize filter of the images differs: card bicubic (Pillow's), now bilinear (Pillow's)"
        assert "hash of the files" not in out


def test_captions_that_are_not_read_do_not_matter(tmp_path, monkeypatch, capsys):
    bench = Bench(tmp_path, monkeypatch, capsys, diffusion_recipe())
    assert bench.write(*DRAW)["drawing"]["conditions"] == []
    (bench.folder / "a" / "03.txt").write_text("another caption")
    assert bench.repeat()[0] == 0


@pytest.mark.parametrize(
    ("version", "factor", "code", "verdict"),
    [
        (None, 1 + 1e-9, 1, "does not agree: 1 of 8 figures are off"),
        ("1.0", 1.0005, 0, "agrees: all 8 figures are equal but for rounding, as machine or versions are others: within 0.1 %;"),
        ("1.0", 1.005, 1, "does not agree: 1 of 8 figures are off"),
    ],
)
def test_figures_may_be_off_by_rounding_on_another_machine(bench, version, factor, code, verdict):
    card = bench.write(*DRAW)
    card["versions"]["torch"] = version or card["versions"]["torch"]
    (figure,) = (row for row in card["measurements"] if row["name"] == "Fréchet distance")
    figure["value"] *= factor
    bench.edit(card)
    got, out, _ = bench.repeat()
    assert got == code
    assert out.splitlines()[-1].startswith(verdict)
    assert ("PyTorch differs: card 1.0, now " in out) == (version is not None)


def test_another_batch_is_allowed_and_another_name_makes_no_difference(bench):
    bench.write(*DRAW, "--batch", 5)
    code, out, _ = bench.repeat("--batch", 2)
    assert (code, out.splitlines()[0]) == (0, "images at once differs: card 5, now 2")
    bench.folder = bench.folder.rename(bench.folder.with_name("renamed"))
    code, out, _ = bench.repeat("-n", 5, "--network", "lite0")  # as the card says
    assert (code, out.splitlines()[0]) == (0, "folder (data) differs: card shapes, now renamed")
    assert out.splitlines()[-1].endswith("to the last bit")


def test_a_figure_that_is_missing_does_not_agree(bench):
    card = bench.write(*DRAW)
    card["measurements"] = card["measurements"][1:]
    card["measurements"][0]["n"] = 6
    bench.edit(card)
    code, out, _ = bench.repeat()
    assert code == 1
    assert "Fréchet distance: card none, now " in out
    assert "does not agree: 2 of 8 figures are off" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", 6], "-n 6 contradicts the card, which says 5: leave one of both out"),
        (["--steps", 9], "--steps 9 contradicts the card, which says 2"),
        (["--split", "train"], "--split train contradicts the card, which says all"),
        (["--network", "nowhere.pth"], "no Inception weights at nowhere.pth"),
        (["--json", "CARD"], "is the card that is repeated: give the new one another name"),
    ],
)
def test_options_that_contradict_the_card_are_refused(bench, arguments, message):
    bench.write(*DRAW)
    code, out, err = bench.repeat(*[bench.card if word == "CARD" else word for word in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: "{", "cannot read"),
        (lambda card: json.dumps({"model": "openmoji-64", "measurements": [], "notes": []}), "is no evaluation card: it has no format"),
        (lambda card: json.dumps({**card, "format": "latentworks-card/2"}), "format 'latentworks-card/2' is not 'latentworks-card/1'"),
        (lambda card: json.dumps({**card, "images": {**card["images"], "size": "large"}}), "is damaged: images.size: Input should be"),
        (lambda card: json.dumps({key: card[key] for key in card if key != "network"}), "is damaged: network: is required"),
        (lambda card: json.dumps({**card, "measurements": [{"name": "KID"}]}), "is damaged: measurements.0.value: is required"),
        (
            lambda card: json.dumps({**card, "measurements": [{**card["measurements"][0], "interval": [1]}]}),
            "is damaged: measurements.0.interval",
        ),
        (lambda card: json.dumps({**card, "network": {**card["network"], "name": "inception-v3"}}), "was measured with inception-v3: give"),
        (
            lambda card: json.dumps({**card, "model": {**card["model"], "kind": "first_stage"}, "drawing": None}),
            "--card is of a first stage (openmoji-64), ",
        ),
    ],
)
def test_a_card_that_cannot_be_repeated_is_one_line(bench, change, message):
    card = bench.write(*DRAW)
    bench.card.write_text(change(card))
    code, out, err = bench.repeat()
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_first_stage_s_card_takes_no_settings_of_drawing(tmp_path, monkeypatch, capsys):
    bench = Bench(tmp_path, monkeypatch, capsys, FIRST_STAGE)
    assert bench.write("--split", "all")["drawing"] is None
    code, _, err = bench.repeat("--steps", 3)
    assert (code, err) == (2, "lw: --steps 3: the card is of a first stage, which draws nothing: leave it out\n")


def test_an_audit_is_put_into_both_files(bench):
    bench.write(*DRAW)
    before = read_card(bench.card)
    add_audit(bench.card, {"verdict": "unclear", "copies": 3})
    add_audit(bench.card, {"verdict": "no copies", "nearest": {"median_ratio": 0.93, "n": 5}})
    after = read_card(bench.card)
    assert after.audit == {"verdict": "no copies", "nearest": {"median_ratio": 0.93, "n": 5}}
    assert after.replace(audit=None) == before
    assert "## Audit\n\n- verdict: no copies\n- nearest: median ratio 0.93, n 5\n" in bench.card.with_suffix(".md").read_text()
    assert bench.repeat()[0] == 0, "an audit changes no figure"
    assert sorted(path.name for path in bench.card.parent.iterdir()) == ["card.json", "card.md", "model", "shapes"]


def test_a_card_is_written_whole_or_not_at_all(bench, tmp_path, monkeypatch):
    bench.write(*DRAW)
    card, before = read_card(bench.card), bench.card.read_text()
    monkeypatch.setattr(Card, "markdown", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_card(card.replace(notes=("new",)), bench.card)
    assert bench.card.read_text() == before
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(ValueError, match=r"notes\.md is no card, whose Markdown would take its place"):
        write_card(card, tmp_path / "notes.json")
    with pytest.raises(ValueError, match=r"cannot write .*: Not a directory; nothing was changed there"):
        check_name(tmp_path / "notes.md" / "card.json")
    (tmp_path / "taken.md").mkdir()
    with pytest.raises(ValueError, match="there is a folder in the place of the card or its Markdown"):
        write_card(card, tmp_path / "taken.json")


def test_a_fingerprint_depends_on_content_alone(tmp_path):
    folder, recipe = shapes(tmp_path), diffusion_recipe([LabelConfig(classes=2, width=32)], KLConfig(**SMALL))
    first, second = (ended(fingerprint(reference_images(folder, recipe, None), ("label",), batch)) for batch in (3, 12))
    assert first == second
    (folder / "a" / "00.png").touch()
    (folder / "a" / "00.txt").write_text("another caption")
    reference = reference_images(folder, recipe, None)
    assert ended(fingerprint(reference, ("label",))) == first
    assert not reference.dataset._images, "images are not kept"
    (folder / "a").rename(folder / "c")
    assert ended(fingerprint(reference_images(folder, recipe, None), ("label",))).conditions != first.conditions
