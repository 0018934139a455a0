"""Shared by all tests: one torch thread each, shapes checked by beartype, where the reference numbers are."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The authors' reference numbers: ../shared/golden from the project's root, or LATENTWORKS_GOLDEN."""
    path = Path(os.environ.get("LATENTWORKS_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden")).resolve()
    if not path.is_dir():
        pytest.skip(f"no reference numbers at {path}; set LATENTWORKS_GOLDEN")
    return path
