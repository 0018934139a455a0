"""Shared by all tests: one torch thread each, shapes checked by beartype, where the reference numbers are; in CI a skip is a failure."""

import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from jaxtyping import install_import_hook

torch.set_num_threads(1)

CHECKED = (
    "conditioners", "diffusion", "first_stage", "image_guidance", "model", "nn.attention", "nn.blocks", "nn.discriminator", "nn.quantizer",
    "nn.transformer", "noisy_classifier", "objectives", "random", "unet",
)  # fmt: skip
install_import_hook([f"latentworks.{name}" for name in CHECKED], "beartype.beartype")  # shapes and types at every call

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The authors' reference numbers: ../shared/golden from the project's root, or LATENTWORKS_GOLDEN."""
    path = Path(os.environ.get("LATENTWORKS_GOLDEN", Path(__file__).parents[1] / ".." / "shared" / "golden")).resolve()
    if not path.is_dir():
        pytest.skip(f"no reference numbers at {path}; set LATENTWORKS_GOLDEN")
    return path


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """accelerate keeps one precision for the whole program: no test inherits that of another."""
    AcceleratorState._reset_state()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a test that was skipped, as its package or data is missing, has failed; an expected failure has not."""
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole file that is skipped."""
    return _failed_if_skipped((yield))


def _failed_if_skipped(report):
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason}\nIn CI everything is there, so a skipped test is a failure."
    return report
