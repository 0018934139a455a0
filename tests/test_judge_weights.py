"""The committed judge is as good as its file says, and at least 95 % right in what models are judged by."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from judges import accuracy  # noqa: E402
from judging import FOLDER, Judge  # noqa: E402

ASKED = (
    "boxes",
    "boxes_without",
    "boxes_empty",
    "class_64",
    "class_128",
    "pixels_64",
    "pixels_128",
    "present",
    "present_without",
    "relation",
)


def test_the_judge_is_right():
    figures = json.loads((FOLDER / "judge.json").read_text())
    assert min(figures[name] for name in ASKED) >= 0.95
    assert figures["scenes"] >= 500
    assert (FOLDER / "judge.safetensors").stat().st_size <= 3e6
    again = accuracy(Judge(), 24)
    for name in ASKED:
        assert again[name] == pytest.approx(figures[name], abs=0.05)
