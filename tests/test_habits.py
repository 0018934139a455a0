"""The code's habits, checked by tools: ruff, mypy, import-linter, and the sizes a reader can take in; and the project's own files."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "src", "tests"],
        ["mypy"],  # strict on src, by pyproject.toml
        ["lint-imports", "--no-cache"],
    ],
    ids=lambda command: command[0],
)
def test_the_tool_finds_nothing(command):
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_calls_what_there_is():
    """Benchmarks and reproductions run rarely and by hand: a call that its function no longer takes is found here, by types alone."""
    scripts = [str(path) for folder in ("benchmarks", "reproduction") for path in sorted((ROOT / folder).glob("*.py"))]
    tool, here = Path(sys.executable).with_name("mypy"), {**os.environ, "MYPYPATH": str(ROOT / "benchmarks")}
    done = subprocess.run([tool, *scripts], cwd=ROOT, env=here, capture_output=True, text=True)
    assert re.search(r"checked \d+ source files", done.stdout), done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith("[call-arg]")] == []


def test_files_and_functions_can_be_taken_in_at_a_glance():
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        long += [f"{path.name}: {n} lines"] if (n := len(text.splitlines())) > 300 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0] if (path.name, node.name) == ("sample.py", "sample") else node  # its signature is its help
                if (n := 1 + node.end_lineno - first.lineno) > 40:
                    long.append(f"{path.name}: {node.name} has {n} lines")
    assert long == []


def test_every_file_says_what_it_is_for():
    silent = [path.name for path in SOURCES if (text := path.read_text(encoding="utf-8")) and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_the_architecture_shows_the_layers_as_they_are():
    """Its table has the rows of the import-linter contract, in the same order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", text.partition("## Layers")[2].partition("## ")[0], re.MULTILINE)
    shown = [[name.strip(" `") for name in row.split(",")] for row in rows]
    (contract,) = SETTINGS["tool"]["importlinter"]["contracts"]
    assert shown == [[name.strip().removeprefix("latentworks.") for name in layer.split("|")] for layer in contract["layers"]]


def requirements(lines) -> set[str]:
    """Names, as pip compares them."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line).group()).lower() for line in lines}


def test_constraints_cover_every_direct_dependency():
    extras = PROJECT["optional-dependencies"].values()
    direct = requirements([*PROJECT["dependencies"], *(line for extra in extras for line in extra)]) - {"latentworks"}
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert requirements(pinned) == direct
    loose = [line for line in pinned if "==" not in line]
    assert requirements(loose) == {"torch", "torchvision"}, "a PyTorch that is already there is kept"


def test_the_core_does_not_need_torchvision():
    assert "torchvision" not in requirements(PROJECT["dependencies"])
    code = "import sys; sys.modules['torchvision'] = None; import latentworks.cli.sample, latentworks.grids, latentworks.runs"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_keeps_the_users_torch(target):
    """What would be run, in an order that cannot be told from the Makefile alone."""
    command = ["make", "--dry-run", "--always-make", target, "TORCH=torch==2.13.0", "PIP_ARGS=--no-cache-dir", "PYTHON=python3.12"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    venv, install = lines.index("python3.12 -m venv .venv"), lines.index("--constraint constraints.txt --no-cache-dir 'torch==2.13.0'")
    assert venv < install < lines.index("lw demo" if target == "demo" else "-m pytest")


def test_the_licence_of_the_code_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]
    assert text.rstrip().endswith("limitations under the License.")
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-SA-4.0", "the second is of the bundled weights"
