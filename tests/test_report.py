"""`lw report`: one well-formed page that needs nothing else, escapes what users wrote, shows what is there and says how to get the rest."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.preparation import RunRequest
from latentworks.report import report
from latentworks.report.charts import POINTS, Curve, Scale, chart
from latentworks.runs import train_run
from toys import ae, classifier, diffusion_model, first_stage_folder, image_folder, ldm, lw

VOID = {"meta", "img", "br", "input", "link"}
CARD = json.loads((Path(__file__).parents[1] / "reproduction" / "bundled-model" / "openmoji-64.json").read_text(encoding="utf-8"))
EVIL = '<script>alert("x")</script> & $x$'


class Reader(HTMLParser):
    """Ids, headings and addresses of a page; tags that do not close each other are an assertion."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.images, self.text, self.scripts, self.charts = [], [], [], [], [], 0, []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        assert len(values) == len(attributes), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)
        self.note(tag, values)

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open, f"{tag} closes itself outside of a drawing"
        self.note(tag, dict(attributes))

    def note(self, tag, values):
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("href", "src") if key in values]
        self.links += re.findall(r"url\((.*?)\)", " ".join(filter(None, values.values())))
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            assert values["alt"]
            self.images.append(values)
        if tag == "svg":
            assert values["role"] == "img"
            self.charts.append(values["aria-label"])
        self.scripts += tag == "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def titles(self):
        return [link[1:] for link in self.links if link.startswith("#") and link[1:] in self.sections]

    @property
    def sections(self):
        return [name.removesuffix("-title") for name in self.ids if name.endswith("-title")]


def read(html):
    """The page, after what must hold of every page."""
    page = Reader(html)
    assert len(set(page.ids)) == len(page.ids)
    assert page.scripts == 1
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or link[1:] in page.ids, link
    outside = re.sub(r"<(pre|dd|td)>.*?</\1>", "", html, flags=re.DOTALL)  # an attribution may name a site
    assert "http:" not in outside
    assert "https:" not in outside
    assert page.titles == [name for name in page.sections if name != "missing"], "all sections are listed, in order"
    return page


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = image_folder(tmp_path_factory.mktemp("report") / "data", captions=True)
    for i, path in enumerate(sorted(folder.glob("*.txt"))):
        path.write_text(f"{i} {EVIL}")
    (folder / "ATTRIBUTION.txt").write_text(f"Drawn by {EVIL}, see https://example.org")
    return folder


def trained(recipe, data, out, **request):
    for _ in train_run(RunRequest(recipe=recipe, data=data, out=out, **request)):
        pass
    return out


@pytest.fixture(scope="module")
def first_stage(data):
    gan = ["objective.discriminator_start=0.5", "objective.discriminator_warmup=0.25"]
    return trained(ae("intervals.evaluate=3", *gan), data, data.parent / "runs" / "ae")


@pytest.fixture(scope="module")
def latent(data):
    stage = first_stage_folder(data.parent / "stage")
    return trained(ldm("intervals.evaluate=4"), data, data.parent / "runs" / "ldm", first_stage=stage)


def test_a_first_stage(first_stage, data):
    page, notes = report(first_stage, data)
    page = read(page)
    assert notes == []
    assert page.sections == ["summary", "curves", "grids", "reconstructions", "attribution", "settings", "missing"]
    text = "".join(page.text)
    for words in (
        "a first stage",
        "8 of 8",
        "Discriminator is right",
        "PSNR",
        "Gradient norm",
        "Learning rate",
        "lw evaluate RUN --data DIR",
    ):
        assert words in text
    grids = [image for image in page.images if image["alt"].startswith("held-out images above")]
    assert [image["alt"][-1] for image in grids] == ["3", "6", "8"]
    held_out = (len(page.images) - len(grids)) // 3
    assert held_out >= 1
    assert len(re.findall(r"\d dB", text)) >= held_out
    assert EVIL in text, "a caption is shown as it was written"
    assert any(label.startswith("Reconstruction over steps: training from") and "held out from" in label for label in page.charts)


def test_a_latent_model(latent, data):
    page = read(report(latent, data).html)
    assert page.sections == ["summary", "curves", "buckets", "grids", "reconstructions", "attribution", "settings", "missing"]
    text = "".join(page.text)
    assert "t 0–99" in text
    assert "t 900–999" in text
    assert "lw audit RUN" in text
    assert "RUN/sweep-10.json" in text
    assert "Unweighted loss" not in text, "it only repeats the loss here"
    assert sum("by bucket of steps" in label for label in page.charts) == 1
    assert report(latent, data) == report(latent, data), "a second one is the same file"


def test_a_classifier_is_not_told_what_it_cannot_have(tmp_path):
    save_folder(tmp_path / "guided", *diffusion_model(name="unconditional-64"))
    data = image_folder(tmp_path / "classes", classes=3)
    run = trained(classifier("intervals.evaluate=4"), data, tmp_path / "run", first_stage=tmp_path / "guided")
    page = read(report(run).html)
    assert page.sections == ["summary", "curves", "buckets", "settings"]
    assert sum("by bucket of steps" in label for label in page.charts) == 2  # loss and accuracy


def test_what_was_measured(latent, data, tmp_path):
    rows = [
        {"sampler": sampler, "steps": steps, "guidance": guidance, "distance": 10 / steps + guidance, "interval": [0.1, 0.2]}
        for sampler in ("ddim", EVIL)
        for steps in (5, 10, 20)
        for guidance in (1.0, 3.0)
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"machine": {"cpu": "a cpu"}, "n": 500, "rows": rows}))
    measurement = {"name": EVIL, "value": 12.5, "n": 50, "reference": "data train", "interval": [11.0, 14.0], "unit": "dB", "seed": None}
    card = {
        "format": "latentworks-card/1",
        "model": {"name": "m", "weights": "abc"},
        "measurements": [measurement, {"name": "x", "value": "inf"}],
    }
    (tmp_path / "card.json").write_text(
        json.dumps({**card, "notes": ["few images"], "machine": {"cpu": "another"}, "audit": {"copies": 2}})
    )
    (tmp_path / "audit").mkdir()
    nearest = [{"image": 3, "distance": 0.25, "caption": EVIL}]
    (tmp_path / "audit" / "audit.json").write_text(json.dumps({"threshold": 0.5, "nearest": nearest, "passed": True}))
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "audit" / "contact_sheet.png")
    html, notes = report(latent, None, tmp_path / "card.json", tmp_path / "audit", [tmp_path / "sweep.json"])
    page = read(html)
    assert notes == ["card.json was measured of other weights than this run's: measure it anew"]
    assert page.sections == ["summary", "curves", "buckets", "grids", "sweeps", "card", "audit", "attribution", "settings", "missing"]
    text = "".join(page.text)
    for words in ("11, 14", "inf", "few images", "another", "audit, copies", "a cpu", "threshold", "yes", "contact sheet"):
        assert words in text
    assert text.count(EVIL) >= len(rows) // 2 + 2
    spoken = [label for label in page.charts if label.startswith("distance over")]
    assert spoken[0] == "distance over steps: the smallest is 1.5 at steps 20 (ddim guidance 1)" or EVIL in spoken[0]
    assert len(spoken) == 2


def test_what_lies_in_the_run_is_found_and_what_is_damaged_there_is_a_note(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    (run / "grids").mkdir(parents=True)
    ldm().save(run / "recipe.json")
    figures = [json.dumps({"step": step, "loss": 1 / step, "odd < name": step, "bad": float("nan")}) for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join([figures[2], "{", *figures[:2], "[]", '{"loss": 1}', '{"step": 4, "lo']))
    (run / "grids" / "0000002.png").write_bytes(b"no picture")
    (run / "card.json").write_text('{"measurements": [')
    (run / "best.json").write_text("[1]")
    (run / "sweep-steps.json").write_text(json.dumps({"rows": [{"steps": 5, "distance": 2.0}, {"steps": 9, "distance": 1.0}]}))
    code, out, err = lw(monkeypatch, capsys, "report", run)
    assert (code, out) == (0, f"{run / 'report.html'}: 0.0 MB, one file that needs no other\n")
    assert err.splitlines() == [
        "note: 4 lines, the first is 2, of metrics.jsonl cannot be read and are left out",
        "note: best.json holds no JSON object but list: write it anew",
        "note: card.json is damaged, no JSON (Expecting value: line 1 column 19 (char 18)): write it anew",
        "note: 0000002.png is damaged or no picture (UnidentifiedImageError) and is left out",
    ]
    page = read((run / "report.html").read_text())
    assert page.sections == ["summary", "curves", "sweeps", "settings", "missing"]
    assert "Loss over steps: training from 1 to 0.3333" in page.charts
    assert "odd < name over steps: training from 1 to 3" in page.charts
    assert "distance over steps: the smallest is 1 at steps 9 (distance)" in page.charts
    assert all(line.removeprefix("note: ") in "".join(page.text) for line in err.splitlines())


def test_a_run_without_figures_is_a_page_too(tmp_path):
    ae().save(tmp_path / "recipe.json")
    page = read(report(tmp_path).html)
    assert page.sections == ["summary", "settings", "missing"]
    assert "lw train, until the first figures are logged" in "".join(page.text)


def test_mistakes_are_one_line_and_nothing_is_written(first_stage, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"rows": [1]}')
    (tmp_path / "odd.json").write_text('{"measurements": []}')
    (tmp_path / "drew.json").write_text(json.dumps({**CARD, "drawing": None}))
    mistakes = {
        (tmp_path / "none",): "no such folder; give one that `lw train` wrote",
        (tmp_path / "empty",): "holds no recipe.json, so it is no run",
        (first_stage / "model",): "is a model folder, which has no history",
        (first_stage, "--card", tmp_path / "none.json"): "none.json cannot be read: No such file",
        (first_stage, "--card", tmp_path / "list.json"): "list.json holds no JSON object but list",
        (first_stage, "--card", tmp_path / "half.json"): "half.json is no evaluation card",
        (first_stage, "--audit", tmp_path / "empty"): "empty holds no audit.json, so it is no audit",
        (first_stage, "--sweep", tmp_path / "half.json"): "half.json is no sweep: it needs rows",
        (first_stage, "--sweep", tmp_path / "odd.json"): "odd.json is no evaluation card: it has no format",
        (first_stage, "--sweep", tmp_path / "drew.json"): "drew.json is a card without drawn images, so no part of a sweep",
        (first_stage, "--data", tmp_path / "empty"): "empty",
        (first_stage, "-o", tmp_path): "is a folder: give a file",
    }
    for arguments, line in mistakes.items():
        code, out, err = lw(monkeypatch, capsys, "report", *arguments, *(() if "-o" in arguments else ("-o", tmp_path / "out.html")))
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert line in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drew.json", "empty", "half.json", "list.json", "odd.json"]


@pytest.mark.parametrize("weights", [None, b"damaged"])
def test_a_run_without_weights_that_can_be_read_is_a_page_with_a_note(data, tmp_path, weights):
    ae().save(tmp_path / "recipe.json")
    if weights is not None:
        (tmp_path / "model").mkdir()
        ae().save(tmp_path / "model" / "recipe.json")
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    html, notes = report(tmp_path, data)
    assert any(("model.safetensors" if weights else "a run gets one when it stops or ends") in note for note in notes)
    assert len(notes) == 1, "each thing is said once"
    assert "reconstructions" not in read(html).sections


def test_what_is_worth_seeing_is_seen(tmp_path):
    """The copies of an audit though they come last, the best curves of a sweep though they come last, rows of other n apart."""
    ae().save(tmp_path / "recipe.json")
    (tmp_path / "audit").mkdir()
    samples = [{"name": f"seed {i}", "score": i / 200} for i in range(300)]
    (tmp_path / "audit" / "audit.json").write_text(json.dumps({"images": samples}))
    rows = [{"sampler": f"s{i}", "steps": steps, "distance": 90 - 10 * i + steps, "n": 100} for i in range(9) for steps in (5, 10)]
    (tmp_path / "sweep.json").write_text(json.dumps({"rows": [*rows, {**rows[-1], "n": 8, "distance": 500}]}))
    page = read(report(tmp_path).html)
    text = "".join(page.text)
    assert "seed 299" in text
    assert "seed 10" not in re.findall(r"seed \d+", text)
    assert "distance over steps: the smallest is 15 at steps 5 (s8 n 100)" in page.charts


def test_cards_are_a_sweep_together(tmp_path):
    """Those in the run and those that are named, in the order of steps; those of other n apart. Other weights and damage are notes."""
    ae().save(tmp_path / "recipe.json")
    for steps, value, n in ((20, 30.0, 500), (4, 44.0, 500), (10, 28.0, 500), (50, 99.0, 100), (100, 98.0, 100)):
        drawing, measurements = {**CARD["drawing"], "steps": steps, "n": n}, [{**CARD["measurements"][0], "value": value, "n": n}]
        place = tmp_path / ("sweep-4.json" if steps == 4 else f"{steps}.json")
        place.write_text(json.dumps({**CARD, "drawing": drawing, "measurements": measurements}))
    (tmp_path / "sweep-6.json").write_text(json.dumps({**CARD, "format": "latentworks-card/9"}))
    html, notes = report(tmp_path, sweeps=[tmp_path / f"{steps}.json" for steps in (20, 10, 50, 100)])
    assert "distance over steps: the smallest is 28 at steps 10 (dpmpp_2m guidance 1.5 n 500)" in read(html).charts
    cells = re.findall(r"\b(?:sweep-)?\d+\.json(?=</td>)", html)
    assert cells == ["sweep-4.json", "10.json", "20.json", "50.json", "100.json"]
    assert sum("other weights" in note for note in notes) == len(cells)
    assert sum("latentworks-card/9" in note for note in notes) == 1


def test_the_figures_of_a_card_are_never_folded(tmp_path):
    ae().save(tmp_path / "recipe.json")
    (tmp_path / "card.json").write_text(json.dumps({**CARD, "measurements": CARD["measurements"][:1] * 20}))
    html = report(tmp_path).html
    assert "<summary>recipe.json" in html
    assert "<summary>Figures" not in html


def test_a_chart():
    """Its names are its own, colours are the page's, and a long curve is short."""
    many = [(float(i), float(i % 3 + 1)) for i in range(5000)]
    curves = [Curve("a", many), Curve('<b> "$c$"', [(1.0, 2.0)], 3, ramp=True)]
    svg = chart(curves, "name", "step", spoken='"x" <y>', scale=Scale(end=5000.0))
    page = Reader(svg)
    assert page.charts == ['"x" <y>']
    assert page.ids
    assert all(name.startswith("name-") for name in page.ids)
    assert '<b> "$c$"' in page.text
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert {"var(--series-0)", "var(--ramp-3)", "var(--line)"} <= set(re.findall(r"var\(--[\w-]+\)", svg))
    longest = max(svg.split('d="')[1:], key=lambda d: d.index('"'))
    assert 10 < longest[: longest.index('"')].count("L") < POINTS
    assert svg == chart(curves, "name", "step", spoken='"x" <y>', scale=Scale(end=5000.0))
    assert len(svg) < 20_000


def test_without_matplotlib_it_says_what_to_install(first_stage, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'latentworks\[report\]'"):
        report(first_stage)


def test_reconstructions_are_of_the_runs_own_weights(first_stage, data):
    """The error that is shown is that of the model in the folder."""
    from latentworks.checkpoints.native import load_folder
    from latentworks.data.dataset import ImageDataset
    from latentworks.data.sources import FolderSource

    model, recipe = load_folder(first_stage / "model")
    images = ImageDataset(FolderSource(data, split="held_out"), recipe.plain)
    with torch.no_grad():
        x = images.batch([0])["image"]
        error = float((model(x).image.clamp(-1, 1) - x).square().mean())
    assert f": {10 * np.log10(4 / error):.1f} dB" in report(first_stage, data).html
