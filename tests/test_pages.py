"""The pages of the tasks: every command with a committed model runs, and the page has the picture that it made."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from latentworks.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tasks").glob("*.md"))
COMMANDS = [
    (page.stem, line) for page in PAGES for line in re.findall(r"^lw sample (models/.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]
FEWER = ["-n", "2"]  # the last of two equal options counts


def fewer(line):
    return FEWER if "--steps" in line else [*FEWER, "--steps", "2"]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_draws(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lw", "sample", *shlex.split(line), *fewer(line), "-o", str(tmp_path / "drawn")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert list((tmp_path / "drawn").glob("*.png"))


@pytest.mark.parametrize("page", sorted({page for page, _ in COMMANDS}))
def test_a_page_shows_what_its_commands_drew(page):
    assert "![" in (text := (ROOT / "docs" / "tasks" / f"{page}.md").read_text(encoding="utf-8"))
    assert f"({page}.png)" in text
    with Image.open(ROOT / "docs" / "tasks" / f"{page}.png") as image:
        image.verify()


@pytest.mark.parametrize("folder", sorted((ROOT / "models").iterdir()), ids=lambda folder: folder.name)
def test_a_model_is_small_and_has_its_card(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8e6
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_options_that_pages_give_to_scripts_are_options_of_theirs():
    pages = [ROOT / "README.md", *(page for folder in ("docs", "benchmarks", "reproduction") for page in (ROOT / folder).rglob("*.md"))]
    commands = [
        found for page in pages for found in re.findall(r"python ((?:benchmarks|reproduction)/\w+\.py)([^`\n]*)", page.read_text("utf-8"))
    ]
    assert len(commands) > 40
    wrong = [
        f"{script} {option}"
        for script, rest in commands
        for option in re.findall(r"(?<!\S)(?:--[a-z-]+|-n)\b", rest)
        if f'"{option}"' not in (ROOT / script).read_text("utf-8")
    ]
    assert wrong == []
