"""What the package promises by name, and what it may cost before any work is done."""

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import latentworks

ROOT = Path(latentworks.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


@pytest.mark.parametrize("name", MODULES)
def test_names_in_all_exist(name):
    """Their order is checked by ruff (RUF022)."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []
    defined = [n.name for n in TREES[MODULES[name]].body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    assert names or not defined, f"{name} defines {defined} but has no __all__"


def test_all_is_complete():
    """Whatever one module takes from another is listed by that other one, so `__all__` is the whole surface."""
    unlisted = {
        f"{node.module}.{alias.name}, taken by {module_name(path)}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "latentworks"
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES
        and alias.name not in getattr(importlib.import_module(str(node.module)), "__all__", [])
    }
    assert sorted(unlisted) == []


def test_the_top_level_names():
    assert dir(latentworks) == latentworks.__all__
    for name in latentworks.__all__:
        assert getattr(latentworks, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'sample'"):
        _ = latentworks.sample


# The quickest of several runs counts: other work on the machine only ever adds time.


def output_of(*command: object) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_quick():
    code = "import time; began = time.perf_counter(); import latentworks; print(time.perf_counter() - began)"
    assert min(float(output_of(sys.executable, "-c", code)) for _ in range(5)) < 0.1


def test_help_is_quick():
    lw, seconds = Path(sys.executable).with_name("lw"), []
    for _ in range(7):
        began = time.perf_counter()
        out = output_of(lw, "--help")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3
    for command in ("data", "train", "encode", "sample", "demo", "evaluate", "audit", "report", "info", "doctor"):
        assert f"\n  {command} " in out
