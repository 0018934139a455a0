"""Images as conditions: the authors' numbers, both conventions of inpainting, what "no condition" is, and errors."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from latentworks.checkpoints.compvis import load_compvis_first_stage
from latentworks.checkpoints.safe_pickle import load_pickle
from latentworks.conditioners import (
    LowResConditioner,
    LowResConfig,
    MaskedImageConditioner,
    MaskedImageConfig,
    SegmentationConditioner,
    SegmentationConfig,
    build_conditioner,
)
from latentworks.config import read_mapping
from latentworks.types import Gives

MAP = SegmentationConfig(classes=4, stages=1)
SECOND = torch.tensor([False, True])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def no_encode(image, normalised=True):
    raise AssertionError("this conditioner needs no first stage")


def half(image, normalised=True):
    """A first stage of factor 2 whose latents are normalised by 10."""
    return F.avg_pool2d(image, 2) * (10 if normalised else 1)


def holes():
    """A batch whose holes are 2 x 2 pixels in different corners."""
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :2, :2] = mask[1, :, 6:, 6:] = 1
    return {"image": torch.rand(2, 3, 8, 8) * 2 - 1, "mask": mask}


# class maps


def test_golden_segmentation(golden):
    folder = golden / "semantic-concat-vq-f4"
    segmentation, io = build_conditioner(SegmentationConfig(classes=12)), load_file(folder / "io.safetensors")
    weight = load_pickle(folder / "model.ckpt")["state_dict"]["cond_stage_model.channel_mapper.weight"]
    segmentation.load_state_dict({"mapper.weight": weight}, strict=True)
    with torch.no_grad():
        concat = segmentation({"segmentation": io["segmentation"]}, no_encode).concat
    assert (concat - io["concat"]).abs().max() <= 1e-5 * io["concat"].abs().max()


def test_a_class_map_is_one_plane_a_class_made_smaller():
    conditioner = SegmentationConditioner(MAP)
    assert conditioner.gives == Gives(concat=3)
    label = torch.randint(4, (2, 6, 8))
    planes = F.avg_pool2d(F.one_hot(label, 4).permute(0, 3, 1, 2).float(), 2)
    expected = torch.einsum("oc,bchw->bohw", conditioner.mapper.weight[:, :, 0, 0], planes)
    torch.testing.assert_close(conditioner({"segmentation": label}, no_encode).concat, expected)
    torch.testing.assert_close(conditioner({"segmentation": label.to(torch.uint8)}, no_encode).concat, expected)


def test_no_class_is_zero_and_what_dropping_leaves():
    conditioner = SegmentationConditioner(MAP)
    for dtype in (torch.long, torch.uint8):
        batch = {"segmentation": torch.randint(4, (2, 4, 4)).to(dtype)}
        concat = conditioner(conditioner.drop(batch, SECOND), no_encode).concat
        assert concat[1].abs().max() == 0
        assert torch.equal(concat[0], conditioner(batch, no_encode).concat[0])
        assert conditioner.drop(batch, ~SECOND & SECOND) is batch
    assert conditioner.drop({}, SECOND) == {}


def test_segmentation_errors_name_the_way_out():
    conditioner = SegmentationConditioner(MAP)
    with pytest.raises(ValueError, match=r'^segmentation: .*batch\["segmentation"\]'):
        conditioner({}, no_encode)
    for bad in (-2, 4):
        with pytest.raises(ValueError, match=f"^segmentation: {bad} is not a class of this model: use 0 to 3, or -1 for none"):
            conditioner({"segmentation": torch.full((1, 2, 2), bad)}, no_encode)


# small images


def test_a_small_image_is_given_as_it_is_and_dropped_to_zeros():
    conditioner = build_conditioner(LowResConfig())
    assert conditioner.gives == Gives(concat=3)
    assert not conditioner.state_dict()
    batch = {"low_res": torch.randn(2, 3, 4, 4)}
    assert conditioner(batch, no_encode).concat is batch["low_res"]
    concat = conditioner(conditioner.drop(batch, SECOND), no_encode).concat
    assert concat[1].abs().max() == 0
    assert torch.equal(concat[0], batch["low_res"][0])
    assert conditioner.drop({}, SECOND) == {}
    folded = build_conditioner(LowResConfig(fold=2))
    assert folded.gives == Gives(concat=12)
    assert torch.equal(folded(batch, no_encode).concat[:, 3], batch["low_res"][:, 0, 1::2, 1::2])  # channel 0, lower right of each square
    with pytest.raises(ValueError, match=r'^low_res: .*batch\["low_res"\]'):
        conditioner({}, no_encode)
    with pytest.raises(ValueError, match=r"^low_res: it has 3 channels, but this model takes images of 1"):
        LowResConditioner(LowResConfig(channels=1))(batch, no_encode)


# images with a hole


def test_golden_masked_image(golden, tmp_path):
    folder = golden / "inpaint-concat-vq-f4"
    io, config = load_file(folder / "io.safetensors"), read_mapping(folder / "config.yaml")["model"]["params"]["first_stage_config"]
    state, prefix = load_pickle(folder / "model.ckpt")["state_dict"], "cond_stage_model."
    torch.save({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, tmp_path / "first.ckpt")
    first_stage = load_compvis_first_stage(tmp_path / "first.ckpt", {"model": config})
    conditioner = build_conditioner(MaskedImageConfig())

    @torch.no_grad()
    def encode(image, normalised=True):
        assert not normalised
        return first_stage.encode_raw(image)

    for mask in (io["mask"], io["mask"].bool()):  # its hole is grey, which a given masked image may be
        concat = conditioner({"mask": mask, "masked_image": io["masked_image"]}, encode).concat
        assert (concat - io["concat"]).abs().max() <= 1e-4 * io["concat"].abs().max()


def test_the_two_conventions_of_inpainting():
    batch = holes()
    ldm, sd = (MaskedImageConditioner(MaskedImageConfig(convention=name)) for name in ("ldm", "sd"))
    assert ldm.gives == sd.gives == Gives(concat=4)
    small = F.interpolate(batch["mask"], size=(4, 4))
    black, grey = (torch.where(batch["mask"] == 1, fill, batch["image"]) for fill in (-1.0, 0.0))
    torch.testing.assert_close(ldm(batch, half).concat, torch.cat([F.avg_pool2d(black, 2), 2 * small - 1], dim=1))
    torch.testing.assert_close(sd(batch, half).concat, torch.cat([small, 10 * F.avg_pool2d(grey, 2)], dim=1))
    given = {"mask": batch["mask"].bool(), "masked_image": grey, "image": torch.zeros(2, 3, 8, 8)}
    torch.testing.assert_close(sd(given, half).concat, sd(batch, half).concat)


@pytest.mark.parametrize("convention", ["ldm", "sd"])
def test_dropping_makes_all_a_hole(convention):
    conditioner = MaskedImageConditioner(MaskedImageConfig(convention=convention))
    batch = holes()
    masked = torch.where(batch["mask"] == 1, conditioner.hole, batch["image"])
    everything = conditioner({"mask": torch.ones(2, 1, 8, 8), "image": batch["image"]}, half).concat
    for given in (batch, {"mask": batch["mask"].bool(), "masked_image": masked}):
        concat = conditioner(conditioner.drop(given, SECOND), half).concat
        assert torch.equal(concat[1], everything[1])
        assert torch.equal(concat[0], conditioner(batch, half).concat[0])
    assert batch["mask"][1].sum() == 4
    assert conditioner.drop({}, SECOND) == {}


def test_mask_errors_name_the_way_out():
    conditioner, batch = MaskedImageConditioner(MaskedImageConfig()), holes()
    for field in batch:
        with pytest.raises(ValueError, match=r'^mask: .*batch\["mask"\].*batch\["image"\]'):
            conditioner({field: batch[field]}, half)
    with pytest.raises(ValueError, match=r"^mask: its shape \(2, 1, 4, 4\) must be that of the image, \(2, 3, 8, 8\)"):
        conditioner({**batch, "mask": batch["mask"][:, :, :4, :4]}, half)
    with pytest.raises(ValueError, match=r"^mask: values must lie in 0 \(keep\) to 1 \(hole\), not -1 to 1"):
        conditioner({**batch, "mask": 2 * batch["mask"] - 1}, half)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (SegmentationConfig, {"classes": 0}),
        (SegmentationConfig, {"classes": 2, "stages": -1}),
        (SegmentationConfig, {"classes": 2, "channels": 0}),
        (SegmentationConfig, {"classes": 2, "dropout": 2}),
        (LowResConfig, {"channels": 0}),
        (LowResConfig, {"dropout": 2}),
        (MaskedImageConfig, {"channels": 0}),
        (MaskedImageConfig, {"convention": "black"}),
        (MaskedImageConfig, {"dropout": 2}),
    ],
)
def test_configs_name_bad_values(config, bad):
    with pytest.raises(ValueError, match=list(bad)[-1]):
        config.parse(bad)
