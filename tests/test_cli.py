"""Bad input gets one line that says what is wrong and what to do, exit code 2, and nothing half-written; the good way works twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks.checkpoints.native import load_newest_state, save_folder
from latentworks.cli import terminal
from latentworks.request import settings_of
from toys import DIFFUSION, FIRST_STAGE, TEXT, diffusion_model, first_stage_folder, image_folder, largest_file, lw

SET_AE = [argument for override in [*FIRST_STAGE, "objective.adversarial_weight=0", "train.steps=4"] for argument in ("--set", override)]
SET_LDM = [argument for override in [*DIFFUSION, *TEXT, "train.steps=4"] for argument in ("--set", override)]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: lw(monkeypatch, capsys, *arguments)


@pytest.fixture
def place(tmp_path):
    """A folder with everything a command may be given, good and bad."""
    data = image_folder(tmp_path / "data", captions=True)
    (tmp_path / "empty").mkdir()
    shutil.copytree(data, tmp_path / "orphan")
    (tmp_path / "orphan" / "99.txt").write_text("a caption")
    shutil.copytree(data, tmp_path / "mixed")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "mixed" / "99.png")
    first_stage_folder(tmp_path / "stage")
    first_stage_folder(tmp_path / "raw", statistics=False)
    save_folder(tmp_path / "model", *diffusion_model())
    save_folder(tmp_path / "plain", *diffusion_model(name="unconditional-64"))
    shutil.copytree(tmp_path / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    return tmp_path


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


AE = ["train", "openmoji-64-ae", *SET_AE]
LDM = ["train", "openmoji-64", *SET_LDM]
SAMPLE = ["sample", "model", "red", "-o", "out"]

BAD = {
    "no such folder": ([*AE, "--data", "nowhere"], "nowhere does not exist; give a folder of images"),
    "an empty folder": ([*AE, "--data", "empty"], "empty holds no images"),
    "a caption without its image": (
        [*LDM, "--data", "orphan", "--first-stage", "stage"],
        "99.txt is a caption without its image; add the image or",
    ),
    "mixed channel counts": ([*AE, "--data", "mixed"], "mixed channel counts: 00.png has 3, 99.png has 1; set channels=3"),
    "an unknown recipe": (["train", "openmoji-64-a", "--data", "data"], "unknown recipe 'openmoji-64-a': did you mean 'openmoji-64-ae'?"),
    "an unknown key": ([*AE, "--data", "data", "--set", "train.bach=3"], "unknown key 'train.bach': did you mean 'batch'?"),
    "a bad value": ([*AE, "--data", "data", "--set", "train.lr=-1"], "train.lr: Input should be greater than 0 (got -1)"),
    "a size f does not divide": (
        [*LDM, "--data", "data", "--first-stage", "stage", "--set", "data.size=18"],
        "data.size: 18 is not divisible by 4",
    ),
    "no first stage": ([*LDM, "--data", "data"], "--first-stage: openmoji-64 is trained in the latent space of a first stage: train one"),
    "a first stage without statistics": (
        [*LDM, "--data", "data", "--first-stage", "raw"],
        "raw has no latent statistics: let its training end",
    ),
    "a file in the way of a run": ([*AE, "--data", "data", "--out", "file"], "file is a file: give another --out"),
    "a file above a run": ([*AE, "--data", "data", "--out", "file/run"], "cannot write file/run"),
    "a run folder that is none": ([*AE, "--data", "data", "--out", "full"], "full is not empty and no run of ours: give another --out"),
    "a bad time": ([*AE, "--data", "data", "--for", "soon"], "--for 'soon': write a time such as 90s, 110m or 1.5h"),
    "fine-tuning of another kind": ([*LDM, "--data", "data", "--from", "stage"], "--from: openmoji-64-ae is a first_stage model"),
    "encoding for a first stage": (
        ["encode", "openmoji-64-ae", *SET_AE, "--data", "data", "--first-stage", "stage"],
        "trains a first stage, which has no",
    ),
    "sampling a first stage": (["sample", "stage", "-o", "out"], "stage is a first stage (openmoji-64-ae): it cannot be sampled"),
    "sampling nothing": (["sample", "modle", "red"], "no model 'modle': no such folder"),
    "sampling a folder of images": (["sample", "data", "red"], "data holds no model"),
    "a corrupt model": (["sample", "broken", "red"], "broken/model.safetensors cannot be read"),
    "an unknown sampler": ([*SAMPLE, "--sampler", "ddimm"], "sampler: unknown sampler 'ddimm': did you mean 'ddim'?"),
    "too many steps": ([*SAMPLE, "--steps", "1001"], "steps: 1001 is not possible, this process has 1000 steps: use 1 to 1000"),
    "no steps": ([*SAMPLE, "--steps", "0"], "steps: Input should be greater than or equal to 1 (got 0)"),
    "a prompt for a model without text": (
        ["sample", "plain", "red", "-o", "out"],
        "prompt: this model does not take text; it takes no condition",
    ),
    "a bad size": ([*SAMPLE, "--size", "big"], "--size 'big': write pixels as 64 or WIDTHxHEIGHT, e.g. 96x64"),
    "no size": ([*SAMPLE, "--size", "0x16"], "size: 0 x 16 has no pixels"),
    "tiles that cannot be halved": (
        [*SAMPLE, "--tile", "18"],
        "tile: 18 pixels cannot be halved as often as the model does: use a multiple of 4",
    ),
    "boxes that are none": ([*SAMPLE, "--boxes", "file"], "--boxes file cannot be read"),
    "an unknown device": ([*SAMPLE, "--device", "tpu"], "device: Input should be 'auto', 'cpu', 'cuda' or 'mps' (got 'tpu')"),
    "a file in the way of images": (["sample", "model", "red", "--steps", "1", "-o", "file"], "cannot write file/red-0.png"),
    "information on nothing": (["info", "opnmoji-64"], "no model or recipe 'opnmoji-64': did you mean 'openmoji-64'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line(case, run, place):
    arguments, message = BAD[case]
    before = listing(place)
    code, out, err = run(*arguments)
    assert err.startswith("lw: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert (code, out) == (2, "")
    assert listing(place) == before


@pytest.mark.parametrize("arguments", [["train", "openmoji-64-ae"], ["train", "--oops"], ["sample"], ["paint"], [*SAMPLE, "--seed", "x"]])
def test_usage_errors_exit_with_2_as_well(arguments, run, place):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "Error" in err


def test_a_run_of_another_model_is_left_alone(run, place):
    assert run(*AE, "--data", "data", "--out", "run")[0] == 0
    before = listing(place)
    code, _, err = run(*LDM, "--data", "data", "--first-stage", "stage", "--out", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "run holds a run of another model" in err
    code, _, err = run(*AE, "--data", "data", "--out", "run", "--set", "first_stage.latent_channels=3")
    assert "(first_stage.latent_channels 2 -> 3): give another --out" in err
    assert listing(place) == before


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(run, place):
    with largest_file(20_000):
        code, _, err = run(*AE, "--data", "data", "--out", "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "cannot write run/" in err
    assert listing(place / "run" / "checkpoints") == []
    assert not (place / "run" / "model").exists()
    with largest_file(1_000):
        code, _, err = run(*LDM, "--data", "data", "--first-stage", "stage", "--out", "latents/run")
    assert (code, err.count("\n")) == (2, 1), err
    assert [path for path in listing(place / "latents") if "npy" in path or "staged" in path] == []
    with largest_file(100):
        code, _, err = run(*SAMPLE, "--steps", "1")
    assert (code, err.count("\n")) == (2, 1), err
    assert "cannot write out/red-0.png: File too large; nothing was changed there" in err
    assert listing(place / "out") == []


def test_train_twice_goes_on_exactly(run, place):
    """Both stages, each stopped after its first step and begun again, end where an uninterrupted run ends."""
    for name, arguments in (("ae", [*AE, "--data", "data"]), ("ldm", [*LDM, "--data", "data", "--first-stage", "runs/ae-whole"])):
        whole, parts = f"runs/{name}-whole", f"runs/{name}-parts"
        assert run(*arguments, "--out", whole)[0] == 0
        code, out, _ = run(*arguments, "--out", parts, "--for", "0s")
        assert code == 0
        assert "state saved at step 1\n" in out
        assert out.endswith("the same command goes on from here\n")
        code, out, _ = run(*arguments, "--out", parts, "--set", "intervals.evaluate=1")
        assert code == 0
        assert "going on from step 1\n" in out
        ours, theirs = (load_newest_state(place / path)[0] for path in (whole, parts))
        assert [key for key in ours if not torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num())] == []
        assert run(*arguments, "--out", whole)[1].endswith(f"{whole} is complete: 4 steps are done\n")
    code, out, _ = run("sample", "runs/ldm-whole", "red blocks", "green", "-n", "2", "--seed", "3", "--size", "24x16", "--no-metadata")
    assert code == 0
    assert out.split() == [f"samples/{name}.png" for name in ("red-blocks-3", "red-blocks-4", "green-5", "green-6")]
    with Image.open(place / "samples" / "green-6.png") as image:
        assert image.size == (24, 16)
        assert image.info == {}


def test_encode_fills_the_cache_of_the_run_that_follows(run, place):
    arguments = ["openmoji-64", *SET_LDM, "--data", "data", "--first-stage", "stage"]
    code, out, _ = run("encode", *arguments)
    assert code == 0
    assert "images are encoded in runs/cache/latents-" in out
    code, out, _ = run("train", *arguments)
    assert code == 0
    assert "encoding" not in out
    assert (place / "runs" / "openmoji-64" / "model" / "model.safetensors").is_file()


def test_sample_writes_its_settings_and_info_shows_them(run, place):
    code, out, _ = run(*SAMPLE, "--steps", "2", "--guidance", "2", "--negative", "blue", "--seed", "9")
    assert (code, out) == (0, "out/red-9.png\n")
    with Image.open(place / "out" / "red-9.png") as image:
        settings = settings_of(image)
    assert (settings.prompt, settings.negative_prompt, settings.seed, settings.steps, settings.guidance) == ("red", "blue", 9, 2, 2.0)
    code, out, _ = run("info", "model", "--json")
    assert code == 0
    assert json.loads(out)["name"] == "openmoji-64"
    assert "parameters, unet: 0." in run("info", "model")[1]
    code, out, _ = run("info")
    assert "  openmoji-64-ae " in out
    assert run("info", "openmoji-64-ae")[0] == 0
    assert "torch: " in run("doctor")[1]


def test_the_installed_command_says_the_same():
    done = subprocess.run([Path(sys.executable).with_name("lw"), "sample", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lw: no model 'nothing': no such folder")


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "EVERY", 0.0)
    assert list(terminal.track([(1, 3), (3, 3)], "drawing")) == [(1, 3), (3, 3)]
    assert capsys.readouterr() == ("", "drawing: 1 of 3\ndrawing: 3 of 3\n")
    monkeypatch.setattr(terminal, "EVERY", 30.0)
    assert list(terminal.track([(1, 3), (3, 3)], "drawing")) == [(1, 3), (3, 3)]
    assert capsys.readouterr().err == "", "short work says nothing"
