"""The files fuzzing has found, replayed: each is read or refused in one line, and nothing is run; see benchmarks/fuzz.py."""

import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the peak of memory is measured through Linux's /proc", allow_module_level=True)

from fuzzing import READERS, check, watched

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", READERS)
def test_every_file_keeps_the_promises(target, tmp_path):
    files = sorted((CORPUS / target).iterdir())
    assert len(files) > 10
    read = [check(target, path) for path in files]
    assert any(read)
    assert not all(read)


def test_the_watch_notices(tmp_path):
    with watched(tmp_path / "a") as seen:
        exec("1")
        (tmp_path / "b").write_text("")
    assert [line.partition("(")[0] for line in seen] == ["compile", "exec", "open"]


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 1 << 20
