"""From a recipe and a folder to a run: what the data fills in, what is refused before anything is written, and where fine-tuning starts."""

import pytest
import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.preparation import RunRequest, load_first_stage, prepare
from latentworks.runs import train_run
from toys import ALIGNED, ALIGNING, ae, diffusion_model, first_stage_folder, image_folder, ldm, scenes_folder


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", captions=True)


@pytest.fixture
def stage(tmp_path):
    return first_stage_folder(tmp_path / "stage")


def weights(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith(("mean", "std"))}


def test_the_data_completes_a_recipe(tmp_path, stage):
    classes = image_folder(tmp_path / "classes", classes=3)
    prepared = prepare(RunRequest(ldm(name="class-64"), classes, tmp_path / "run", first_stage=stage))
    assert prepared.recipe.data.channels == 3
    assert prepared.recipe.conditioners[0].classes == 3
    assert prepared.recipe.conditioners[0].names == ("class0", "class1", "class2")
    assert prepared.recipe.first_stage == load_folder(stage)[1].first_stage
    assert prepared.latents is not None
    assert not prepared.latents.ready
    assert len(prepared.held_out) + len(prepared.images) == 24
    assert prepared.held_out.preprocess.crop_size is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes", "stage"], "nothing is written yet"


def test_a_seed_makes_the_same_model_and_leaves_the_world_alone(data, tmp_path):
    before = torch.get_rng_state()
    first, second, third = (prepare(RunRequest(ae(f"train.seed={seed}"), data, tmp_path / "run")).model for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert not torch.equal(first.encoder.conv_in.weight, third.encoder.conv_in.weight)


REFUSED = {
    "no folder": (ae, "nowhere", {}, "nowhere does not exist; give a folder of images"),
    "no first stage": (ldm, "data", {}, "--first-stage: openmoji-64 is trained in the latent space of a first stage"),
    "no statistics": (ldm, "data", {"first_stage": "raw"}, "raw has no latent statistics: let its training end"),
    "first stage not there": (ldm, "data", {"first_stage": "nothing"}, "no model '.*nothing': no such folder"),
    "no captions": (ldm, "classes", {"first_stage": "stage"}, "has no train image with a caption; add .txt files"),
    "no classes": (lambda: ldm(name="class-64"), "data", {"first_stage": "stage"}, "has no classes: give one sub-folder for each class"),
    "size": (lambda: ldm("data.size=18"), "data", {"first_stage": "stage"}, "data.size: 18 is not divisible by 4, .*: use 16 or 20"),
    "crop": (lambda: ae("data.crop_size=15"), "data", {}, "data.crop_size: 15 is not divisible by 2, .*: use 14 or 16"),
    "whole": (lambda: ae("data.size=21"), "data", {}, "data.size: 21 is not divisible by 2"),
    "channels": (ldm, "grey", {"first_stage": "stage"}, "--first-stage: .* was trained on images of 3 channels, these have 1"),
    "discriminator": (
        lambda: ae("objective.discriminator.layers=3"),
        "data",
        {},
        "layers: 3 halvings need 24 pixels a side, the images have 16",
    ),
    "never starts": (lambda: ae("objective.discriminator_start=1.5"), "data", {}, "discriminator_start = 1.5 is a fraction of the run"),
    "identity": (lambda: ae("first_stage={kind: identity}"), "data", {}, "first_stage.kind: an identity has nothing to train"),
    "vocabulary": (
        lambda: ldm("conditioners.0.vocabulary=99"),
        "data",
        {"first_stage": "stage"},
        "vocabulary: 99 cannot hold the 256 bytes",
    ),
    "no reader": (
        lambda: ldm("conditioners=[{kind: features, width: 3}]"),
        "data",
        {"first_stage": "stage"},
        "conditioners.0.kind: features cannot be trained from a folder, which has no embeddings",
    ),
    "no boxes": (
        lambda: ldm("conditioners=[{kind: layout, classes: 3}]"),
        "data",
        {"first_stage": "stage"},
        "has no train image with boxes; add COCO's instances.json, or YOLO's .txt",
    ),
    "no maps": (
        lambda: ldm("conditioners=[{kind: segmentation, classes: 3}]"),
        "data",
        {"first_stage": "stage"},
        "has no train image with a label map; add PNGs of the same names",
    ),
    "a small image smaller than the latent": (
        lambda: ldm("conditioners=[{kind: low_res, factor: 3}]"),
        "data",
        {"first_stage": "stage"},
        "conditioners.factor: .* use a first stage whose f divides 3",
    ),
    "from another kind": (ldm, "data", {"from_model": "stage"}, "--from: openmoji-64-ae is a first_stage model, but another kind"),
    "aligned text that learned nothing": (
        lambda: ldm(*ALIGNED),
        "data",
        {"from_model": "ldm"},
        "--from: .*ldm has no aligned text, and conditioners.0 stays as it is while the net learns: train it first",
    ),
    "aligned text from nothing": (lambda: ldm(*ALIGNED), "data", {"first_stage": "stage"}, "--from: nothing has no aligned text"),
    "nothing to align": (
        lambda: ldm("objective={kind: alignment}"),
        "data",
        {"first_stage": "stage"},
        "objective.kind: alignment teaches aligned text, and this recipe has none",
    ),
    "a decoder for nothing": (lambda: ae("objective.decoder_only=true"), "data", {}, "--from: .*name the first stage it is of"),
    "from another width": (
        lambda: ae("first_stage.channels=32"),
        "data",
        {"from_model": "stage"},
        "--from: openmoji-64-ae does not fit this recipe",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(case, data, stage, tmp_path):
    recipe, folder, request, message = REFUSED[case]
    image_folder(tmp_path / "classes", classes=1)
    image_folder(tmp_path / "grey", channels=1, captions=True)
    first_stage_folder(tmp_path / "raw", statistics=False)
    save_folder(tmp_path / "ldm", *diffusion_model())
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        prepare(RunRequest(recipe(), tmp_path / folder, tmp_path / "run", **{key: tmp_path / name for key, name in request.items()}))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_text_learns_first_and_then_stays_while_the_net_learns(data, stage, tmp_path):
    first = ldm(*ALIGNING, "conditioners.0.word_dropout=0.2", "train.lr=1e-2")
    for _ in train_run(RunRequest(first, data, tmp_path / "text", first_stage=stage)):
        pass
    then = RunRequest(ldm(*ALIGNED, "train.lr=1e-2"), data, tmp_path / "net", first_stage=stage, from_model=tmp_path / "text")
    begun = {key: value.clone() for key, value in prepare(then).model.state_dict().items()}
    assert not (tmp_path / "text" / "grids").exists(), "there is no net yet to draw with"
    taught = load_folder(tmp_path / "text" / "model")[0].state_dict()
    assert all(torch.equal(value, begun[key]) for key, value in taught.items())
    for _ in train_run(then):
        pass
    after = load_folder(tmp_path / "net" / "model")[0].state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, begun[key])}
    assert {key.split(".")[2] for key in moved if key.startswith("conditioners")} == {"spread"}
    assert any(key.startswith("unet") for key in moved)


def test_fine_tuning_starts_from_the_same_weights(data, stage, tmp_path):
    model, recipe = diffusion_model(statistics=(0.2, 0.7))
    save_folder(tmp_path / "ldm", model, recipe)
    prepared = prepare(RunRequest(ldm(), data, tmp_path / "run", from_model=tmp_path / "ldm"))
    assert prepared.notes == []
    ours, theirs = prepared.model.state_dict(), model.state_dict()
    assert [key for key in ours | theirs if not torch.equal(ours[key], theirs[key])] == [], "its first stage and statistics too"
    assert prepared.model.conditioners[0].tokenizer.to_str() == model.conditioners[0].tokenizer.to_str(), "words keep their tokens"

    other = first_stage_folder(tmp_path / "other", "train.seed=1")
    stranger, its = load_folder(other)
    torch.nn.init.normal_(stranger.encoder.conv_in.weight)
    save_folder(other, stranger, its)
    prepared = prepare(RunRequest(ldm(), data, tmp_path / "run", first_stage=other, from_model=tmp_path / "ldm"))
    assert any("is not the one" in note for note in prepared.notes)
    assert torch.equal(prepared.model.unet.conv_in.weight, model.unet.conv_in.weight)
    assert torch.equal(prepared.model.first_stage.encoder.conv_in.weight, stranger.encoder.conv_in.weight)


def test_a_first_stage_fine_tunes_a_first_stage(data, stage, tmp_path):
    prepared = prepare(RunRequest(ae(), data, tmp_path / "run", from_model=stage))
    ours, theirs = weights(prepared.model), weights(load_folder(stage)[0])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not prepared.model.normalised, "its statistics are those of other weights"


def test_cached_equals_uncached(data, stage, tmp_path):
    prepared = prepare(RunRequest(ldm("train.precision=float32", "conditioners.0.dropout=0.3"), data, tmp_path / "run", first_stage=stage))
    list(prepared.latents.fill())
    torch.nn.init.normal_(prepared.model.unet.conv_out.weight, std=0.1)  # it starts at zero
    for step in range(3):
        indices = prepared.images.indices_for(step, 6)
        assert indices == prepared.latents.indices_for(step, 6)
        cached, images = (source.batch(indices, step) for source in (prepared.latents, prepared.images))
        assert "raw" in cached
        assert "raw" not in images
        ours, theirs = (next(prepared.objective.losses(batch, step)) for batch in (cached, images))
        assert float(ours.value) == pytest.approx(float(theirs.value), abs=1e-4, rel=1e-5)


def test_a_first_stage_starts_from_that_of_a_latent_model(data, tmp_path):
    model, recipe = diffusion_model()
    save_folder(tmp_path / "ldm", model, recipe)
    prepared = prepare(RunRequest(ae(), data, tmp_path / "run", from_model=tmp_path / "ldm"))
    assert all(torch.equal(a, b) for a, b in zip(weights(prepared.model).values(), weights(model.first_stage).values(), strict=True))
    assert not prepared.model.normalised, "statistics are of the data"


def test_a_decoder_alone_keeps_the_latents_and_their_statistics(data, stage, tmp_path):
    request = RunRequest(ae("objective.decoder_only=true", "objective.latent_noise=0.5"), data, tmp_path / "run", from_model=stage)
    list(train_run(request))
    before, after = load_first_stage(stage), load_first_stage(tmp_path / "run")
    changed = {key.split(".")[0] for key, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[key])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize("kind", ["layout", "segmentation", "low_res", "masked_image"])
def test_a_folder_completes_every_condition_and_its_batches_feed_it(kind, stage, tmp_path):
    data = scenes_folder(tmp_path / "data")
    settings = {
        "layout": "width: 16, layers: 1, heads: 2, head_channels: 8, length: 8, vocabulary: 64, classes: 1",
        "segmentation": "classes: 1",
    }
    recipe = ldm(f"conditioners=[{{kind: {kind}, {settings.get(kind, 'dropout: 0.5')}}}]", "data.flip=true", name="unconditional-64")
    prepared = prepare(RunRequest(recipe.replace(variants=2), data, tmp_path / "run", first_stage=stage))
    config = prepared.recipe.conditioners[0]
    if kind == "layout":
        assert (config.classes, config.names) == (2, ("square", "bar"))
    elif kind == "segmentation":
        assert (config.classes, config.names, config.stages) == (3, ("background", "square", "bar"), 1)
        assert len(config.palette) == 3
    elif kind == "low_res":
        assert (config.channels, config.scale, config.fold) == (3, 2, 1)
    else:
        assert config.channels == 2
    *_, _ = prepared.latents.fill()
    indices, step = [0, 5, 7], 3
    batch = prepared.latents.batch(indices, step)
    cond = prepared.model.condition(batch)
    assert (cond.context if kind == "layout" else cond.concat).shape[0] == 3
    if kind == "segmentation":  # the map shows the variant whose latent it stands beside
        flips = [prepared.latents.variant(i, prepared.latents.drawn(i, step)).flip for i in indices]
        plain = prepared.images.fields(indices)["segmentation"]
        assert all(torch.equal(batch["segmentation"][k], plain[k].flip(-1) if flip else plain[k]) for k, flip in enumerate(flips))
        assert any(flips)
    if kind in ("low_res", "masked_image"):
        field = {"low_res": "low_res", "masked_image": "mask"}[kind]
        assert torch.equal(batch[field], prepared.latents.batch(indices, step)[field]), "drawn by seed, step and index"
    (loss,) = prepared.objective.losses(batch, step)
    assert torch.isfinite(loss.value)
