"""A run may be stopped at any step, by anything, looked at as often as one likes, and ends in the same bits."""

import json
import math
import os
import signal
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

from latentworks.checkpoints.native import load_folder, load_newest_state, save_folder
from latentworks.data.dataset import ImageDataset
from latentworks.preparation import RunRequest
from latentworks.runs import Message, Progress, train_run
from toys import ae, classifier, diffusion_model, first_stage_folder, image_folder, largest_file, ldm

SPEED = ("images_per_second", "peak_memory_gib")


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", captions=True)


@pytest.fixture
def stage(tmp_path):
    return first_stage_folder(tmp_path / "stage")


def go(recipe, data, out, stop_at=None, number=signal.SIGTERM, **request):
    """Run to the end, or until after step ``stop_at``; all messages."""
    messages = []
    for event in train_run(RunRequest(recipe=recipe, data=data, out=out, **request)):
        if isinstance(event, Message):
            messages.append(event.text)
        elif event.step == stop_at:
            os.kill(os.getpid(), number)
    return messages


def final(out):
    """The last state, and the figures of all steps."""
    tensors, complaints = load_newest_state(out)
    assert complaints == []
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: {k: v for k, v in row.items() if k not in SPEED} for row in rows if "loss" in row}
    return tensors, steps


def assert_equal(a, b):
    (ours, figures), (theirs, other_figures) = final(a), final(b)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num())] == []
    assert figures == other_figures


GAN = ["objective.discriminator_start=0.5", "objective.discriminator_warmup=0.25"]
RUNS = {
    "kl": lambda: ae(*GAN, "objective.perceptual={kind: efficientnet, stages: 2}", "first_stage.dropout=0.1"),
    "vq": lambda: ae(*GAN, "first_stage.codes=16", "objective.restart_dead_after=2", "train.precision=float32", name="openmoji-64-ae-vq"),
    "text": lambda: ldm("unet.dropout=0.2", "conditioners.0.dropout=0.5", "data.flip=true", "variants=2", "train.accumulate=2"),
    "classifier": lambda: classifier("classifier.unet.dropout=0.2", "data.flip=true", "variants=2"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_resume_is_bit_exact(kind, data, stage, tmp_path):
    recipe = RUNS[kind]()
    request = {"first_stage": stage} if kind == "text" else {}
    if kind == "classifier":
        save_folder(tmp_path / "guided", *diffusion_model(name="unconditional-64"))
        data, request = image_folder(tmp_path / "classes", classes=3), {"first_stage": tmp_path / "guided"}
    go(recipe, data, tmp_path / "whole", **request)
    often = recipe.replace(intervals={"log": 1, "checkpoint": 2, "evaluate": 2, "held_out": 1})
    messages = go(often, data, tmp_path / "parts", stop_at=3, **request)
    assert "state saved at step 3" in messages
    assert messages[-1] == f"model written to {tmp_path / 'parts' / 'model'}; the same command goes on from here"
    torch.manual_seed(99)  # the state of the world outside does not matter
    assert "going on from step 3" in go(often, data, tmp_path / "parts", stop_at=5, number=signal.SIGINT, **request)
    messages = go(recipe, data, tmp_path / "parts", **request)
    assert "going on from step 5" in messages
    assert messages[-1] == f"model written to {tmp_path / 'parts' / 'model'}"
    assert_equal(tmp_path / "whole", tmp_path / "parts")
    tensors, figures = final(tmp_path / "whole")
    assert len(figures) == 8
    if request:
        assert any(key.startswith("average.model.") for key in tensors)
    else:
        assert {"discriminator", "adversarial"} <= figures[8].keys()
        assert "discriminator" in figures[3]  # it warms up from step 2 on
        assert "adversarial" not in figures[3]
        assert any(key.startswith("optimiser.discriminator.") for key in tensors)
    if kind == "vq":
        assert "module.first_stage.quantizer.counts" in tensors
    a, b = (load_folder(tmp_path / run / "model")[0].state_dict() for run in ("whole", "parts"))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert go(recipe, data, tmp_path / "parts", **request)[-1] == f"{tmp_path / 'parts'} is complete: 8 steps are done"


def test_a_truncated_newest_state_falls_back_to_the_one_before(data, tmp_path):
    recipe = ae("objective.adversarial_weight=0", "intervals.checkpoint=2")
    go(recipe, data, tmp_path / "whole")
    go(recipe, data, tmp_path / "run", stop_at=5)
    states = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in states] == ["step-000000004", "step-000000005"]
    file = states[1] / "state.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    messages = go(recipe, data, tmp_path / "run", stop_at=6)
    assert "step-000000005 is damaged and removed, going back to the save before it" in messages
    assert "going on from step 4" in messages
    (tmp_path / "run" / "checkpoints" / "step-000000006" / "manifest.json").unlink()
    messages = go(recipe, data, tmp_path / "run")
    assert "step-000000006 is incomplete and removed, going back to the save before it" in messages
    assert_equal(tmp_path / "whole", tmp_path / "run")
    rows = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "images_per_s" in line]
    assert rows == list(range(1, 9))  # none twice


def test_a_run_without_a_usable_state_says_that_it_starts_anew(data, tmp_path):
    recipe = ae("objective.adversarial_weight=0", "train.steps=2")
    go(recipe, data, tmp_path / "run")
    for manifest in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        manifest.write_text("[]")
    assert "no saved state: starting anew" in go(recipe, data, tmp_path / "run")


def test_a_run_that_ended_before_its_model_was_written_writes_it(data, tmp_path):
    recipe = ae("objective.adversarial_weight=0", "train.steps=2")
    go(recipe, data, tmp_path / "run")
    before = load_file(tmp_path / "run" / "model" / "model.safetensors")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    assert go(recipe, data, tmp_path / "run")[-1] == f"model written to {tmp_path / 'run' / 'model'}"
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_time_ends_a_run(data, tmp_path):
    messages = go(ae("train.steps=100000", "objective.adversarial_weight=0"), data, tmp_path / "run", seconds=0.5)
    step = int(load_newest_state(tmp_path / "run")[0]["step"])
    assert f"state saved at step {step}" in messages
    assert 1 <= step < 100000
    assert load_folder(tmp_path / "run" / "model")[0].normalised
    assert load_folder(tmp_path / "run" / "best")[0].normalised


def test_a_signal_while_latents_are_encoded_leaves_no_half_cache(data, stage, tmp_path):
    messages = []
    for event in train_run(RunRequest(ldm(), data, tmp_path / "runs" / "run", first_stage=stage)):
        messages.append(event.text)
        if "encoding" in event.text:
            os.kill(os.getpid(), signal.SIGTERM)
    assert messages[-1] == "stopped before the first step: nothing to save"
    assert list((tmp_path / "runs" / "cache").glob("*latents*")) == []


def test_nan_stops_before_the_update_and_the_saved_state_stays(data, tmp_path, monkeypatch):
    recipe = ae("objective.adversarial_weight=0", "intervals.checkpoint=1")
    with pytest.raises(FloatingPointError, match="loss of first_stage is not finite at step 3"):  # noqa: PT012
        for event in train_run(RunRequest(recipe, data, tmp_path / "run")):
            if isinstance(event, Progress) and event.step == 3:
                monkeypatch.setattr(ImageDataset, "_cut", lambda self, images, variants: torch.full((len(images), 3, 16, 16), math.nan))
    tensors, complaints = load_newest_state(tmp_path / "run")
    assert (int(tensors["step"]), complaints) == (3, [])
    assert all(torch.isfinite(value).all() for key, value in tensors.items() if not key.endswith("first_stage.std"))


def test_a_full_disk_leaves_the_last_state(data, tmp_path):
    recipe = ae("objective.adversarial_weight=0", "intervals.checkpoint=2")
    with pytest.raises(ValueError, match=r"cannot write .*step-000000004: .*nothing was changed there"), ExitStack() as stack:  # noqa: PT012
        for event in train_run(RunRequest(recipe, data, tmp_path / "run")):
            if isinstance(event, Progress) and event.step == 3:
                stack.enter_context(largest_file(100_000))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]
    assert "going on from step 2" in go(recipe, data, tmp_path / "run")


def test_a_damaged_file_is_skipped_counted_and_named(data, stage, tmp_path):
    (data / "05.png").write_bytes(b"no image")
    (data / "07.png").write_bytes((data / "07.png").read_bytes()[:60])
    for recipe, request in ((ae("train.steps=2"), {}), (ldm("train.steps=2"), {"first_stage": stage})):
        for _ in range(2):  # the second time the latents are cached
            messages = go(recipe, data, tmp_path / "runs" / recipe.kind, **request)
        assert "2 of the files cannot be read and are skipped: 05.png, 07.png" in messages or "complete" in messages[-1]
    messages = go(ldm("train.steps=2"), data, tmp_path / "runs" / "again", first_stage=stage)
    assert "2 of the files cannot be read and are skipped: 05.png, 07.png" in messages


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (1, "uint16"), (5, "uint8")])
def test_any_channels_and_depth_train_both_stages(channels, dtype, tmp_path):
    data = image_folder(tmp_path / "data", channels=channels, dtype=dtype)
    recipe = ae("train.steps=2", "objective.perceptual={kind: efficientnet, stages: 1}", "objective.discriminator_start=0.5")
    messages = go(recipe, data, tmp_path / "ae")
    assert any("no perceptual loss" in message for message in messages) == (channels == 5)
    go(ldm("train.steps=2", name="unconditional-64"), data, tmp_path / "ldm", first_stage=tmp_path / "ae")
    _, recipe = load_folder(tmp_path / "ldm" / "model")
    assert (recipe.data.channels, recipe.data.depth) == (channels, dtype)
    assert [path.name for path in (tmp_path / "ldm" / "grids").iterdir()] == ["0000002.png"]


def test_few_images_train_without_any_held_out(tmp_path):
    data = image_folder(tmp_path / "data", n=3)
    messages = go(ae("train.steps=2"), data, tmp_path / "run")
    assert any(message.startswith("nothing is held out") for message in messages)
    assert not (tmp_path / "run" / "best").exists()
    assert len(list((tmp_path / "run" / "grids").iterdir())) == 1


def test_a_run_folder_of_another_model_is_refused(data, stage, tmp_path):
    go(ae("train.steps=1"), data, tmp_path / "ae")
    with pytest.raises(ValueError, match=r"holds a run of another model \(first_stage.latent_channels 2 -> 3\): give another --out"):
        go(ae("train.steps=1", "first_stage.latent_channels=3"), data, tmp_path / "ae")
    messages = go(ae("train.steps=2"), data, tmp_path / "ae")
    assert "train.steps 1 -> 2: what depends on it changes from here on" in messages
    assert json.loads((tmp_path / "ae" / "recipe.json").read_text())["train"]["steps"] == 2
    go(ldm("train.steps=1"), data, tmp_path / "ldm", first_stage=stage)
    with pytest.raises(ValueError, match="was trained with another first stage"):
        go(ldm("train.steps=2"), data, tmp_path / "ldm", first_stage=tmp_path / "ae")
    for text in data.glob("*.txt"):
        text.write_text("quite another caption, and another")
    with pytest.raises(ValueError, match="has another vocabulary, as the captions changed"):
        go(ldm("train.steps=2"), data, tmp_path / "ldm", first_stage=stage)


def test_two_trainings_do_not_share_a_folder(data, tmp_path):
    first = train_run(RunRequest(recipe=ae("train.steps=2"), data=data, out=tmp_path / "run"))
    assert next(first)
    with pytest.raises(ValueError, match="is being trained by another process: let it end, or give another --out"):
        go(ae("train.steps=2"), data, tmp_path / "run")
    assert "model written to" in "".join(event.text for event in first if isinstance(event, Message))
    assert f"{tmp_path / 'run'} is complete: 2 steps are done" in go(ae("train.steps=2"), data, tmp_path / "run")


def test_more_images_are_noticed(data, tmp_path):
    go(ae("train.steps=1"), data, tmp_path / "run")
    image_folder(data, n=26)
    assert any("the data changed" in message for message in go(ae("train.steps=2"), data, tmp_path / "run"))


def test_a_figure_that_begins_between_two_lines_is_not_thinned_out(data, tmp_path):
    recipe = ae("objective.discriminator_start=0.75", "objective.discriminator_warmup=0", "train.precision=float32")
    go(recipe, data, tmp_path / "each")
    go(recipe.replace(intervals={"log": 8}), data, tmp_path / "sum")
    (_, each), (_, together) = final(tmp_path / "each"), final(tmp_path / "sum")
    assert together[8]["discriminator"] == pytest.approx(sum(each[step]["discriminator"] for step in (7, 8)) / 2)
