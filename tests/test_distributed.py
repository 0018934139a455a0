"""Two processes equal one with twice the batch: gradients, adaptive weight and codes are shared, data and noise are split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentworks.checkpoints.native import load_folder, load_newest_state
from latentworks.preparation import RunRequest
from latentworks.runs import Message, train_run
from toys import ALIGNING, ae, first_stage_folder, image_folder, ldm

SPEED = ("images_per_second", "peak_memory_gib")
COUNTS = "module.first_stage.quantizer.counts"
EXACT = ["train.precision=float32", "train.steps=4", "train.lr=1e-5", "intervals.evaluate=2"]
CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
GAN = ["objective.discriminator_start=0.5", "objective.discriminator_warmup=0.5"]


def figures(path):
    return [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["vq", "text", "aligned"])
def test_two_processes_equal_one(kind, tmp_path):
    data, stage = image_folder(tmp_path / "data", captions=True), first_stage_folder(tmp_path / "stage")
    if kind == "vq":
        one = ae(*EXACT, *GAN, "train.batch=8", "first_stage.codes=32", "objective.restart_dead_after=3", name="openmoji-64-ae-vq")
        arguments = []
    else:
        one = ldm(*EXACT, "train.batch=8", "conditioners.0.dropout=0.5", *(ALIGNING if kind == "aligned" else ()))
        arguments = ["--first-stage", stage]
    messages = train_run(RunRequest(one, data, tmp_path / "one" / "run", first_stage=stage if arguments else None))
    messages = [event.text for event in messages if isinstance(event, Message)]

    one.replace(train={**one.train.model_dump(), "batch": 4}).save(tmp_path / "recipe.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [Path(sys.executable).with_name("lw"), "train", tmp_path / "recipe.json", "--data", data, "--out", tmp_path / "two" / "run"]
    done = subprocess.run([*launch, *command, *arguments], capture_output=True, text=True, timeout=120, env=os.environ | CPU)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line.replace(str(tmp_path / "two"), str(tmp_path / "one")) for line in done.stdout.splitlines() if not line.startswith("step ")]
    assert [line for line in said if "held out at" not in line] == [line for line in messages if "held out at" not in line]

    ours, theirs = (load_newest_state(tmp_path / run / "run")[0] for run in ("one", "two"))
    assert ours.keys() == theirs.keys()
    moments = [key for key in ours if key.endswith("exp_avg")]
    a, b = (torch.cat([state[key].flatten() for key in moments]) for state in (ours, theirs))
    assert float((a - b).norm()) < 1e-3 * float(a.norm()), "the gradients of all steps"
    weights = [key for key in ours if key.startswith("module.") and not key.endswith((".std", ".counts"))]
    a, b = (torch.cat([state[key].flatten().float() for key in weights]) for state in (ours, theirs))
    assert float((a - b).norm()) < 1e-5 * float(a.norm())
    rows, others = (figures(tmp_path / run / "run" / "metrics.jsonl") for run in ("one", "two"))
    assert [row["step"] for row in others] == [1, 2, 2, 3, 4, 4], "one process writes"
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-6)
    assert load_folder(tmp_path / "two" / "run" / "model")
    if kind == "vq":
        assert torch.equal(ours[COUNTS], 2 * theirs[COUNTS]), "a mean over processes"
