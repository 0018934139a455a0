"""Boxes as tokens, exactly as the authors' builder spells them, and what the layout conditioner makes of them."""

import json
import math

import pytest
import torch

from latentworks.conditioners import LayoutConditioner, LayoutConfig, layout_tokens
from latentworks.conditioners.layout import paint
from latentworks.types import Gives

NAMES = ("cat", "dog", "sun", "tree")
SMALL = LayoutConfig(width=16, layers=1, heads=2, head_channels=8, length=11, vocabulary=100, classes=4, names=NAMES)
CAT = {"x": 0.0, "y": 0.5, "width": 0.5, "height": 0.5, "label": 0}
TREE = {"x": 0.25, "y": 0.0, "width": 0.75, "height": 1.0, "label": "tree"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def no_encode(image, normalised=True):
    raise AssertionError("this conditioner needs no first stage")


def test_tokens_are_those_of_the_authors_builder(golden):
    cases = json.loads((golden / "layout-tokens.json").read_text())
    assert len(cases) == 12
    for case in cases:
        attributes = ("group",) * case["group"] + ("occluded", "depiction", "inside") * case["extra"]
        length = 3 * case["max_objects"] + 2
        config = LayoutConfig(classes=case["classes"], vocabulary=case["tokens_total"], length=length, attributes=attributes)
        boxes = []
        for thing in case["objects"]:
            x, y, width, height = thing["box_xywh"]
            said = {"group": thing["is_group_of"], "occluded": thing["is_occluded"], "depiction": thing["is_depiction"]}
            box = {"x": x, "y": y, "width": width, "height": height, "label": thing["category"], "inside": thing["is_inside"], **said}
            boxes.append(box)
        x, y, width, height = case["crop_xywh"]
        assert layout_tokens(boxes, config, (x, y, x + width, y + height)) == case["tokens"]


def test_a_layout_is_spelt_out():
    """A vocabulary of 100 has a grid of 10 x 10, and 99 is "no object"."""
    assert layout_tokens([CAT, TREE], SMALL) == [0, 40, 94, 3, 2, 99, 99, 99, 99, 0, 99]
    assert layout_tokens([], SMALL, (0.1, 0.2, 0.9, 1.0)) == [99] * 9 + [21, 98]
    said = SMALL.replace(attributes=("group", "inside"))
    assert layout_tokens([{**CAT, "group": True, "inside": True, "occluded": True}], said)[0] == 0 + 4 * (1 + 8)
    assert layout_tokens([{**CAT, "group": True}], SMALL)[0] == 0
    rounded = {**CAT, "x": -1e-5, "width": 1.00002}
    assert layout_tokens([rounded], SMALL)[1:3] == [40, 99]


def test_boxes_tokens_and_what_no_condition_is():
    layout = LayoutConditioner(SMALL)
    assert layout.gives == Gives(context=16)
    boxes = {"boxes": [[CAT, TREE], [TREE]]}
    tokens = {"tokens": layout.tokenize(boxes["boxes"])}
    context = layout(boxes, no_encode).context
    assert context.shape == (2, 11, 16)
    assert torch.equal(layout(tokens, no_encode).context, context)
    none = layout({"boxes": [[], []]}, no_encode).context
    where = torch.tensor([False, True])
    for batch in (boxes, tokens):
        dropped = layout(layout.drop(batch, where), no_encode).context
        assert torch.equal(dropped[1], none[1])
        assert torch.equal(dropped[0], context[0])
    assert boxes["boxes"][1] == [TREE]
    assert layout.drop({}, where) == {}
    assert layout.tokenize([]).shape == (0, 11)


def test_boxes_are_painted_where_they_are():
    """The smallest on top whatever the order, each pixel with its class and where in the box it lies, no box without a pixel."""
    dot = {"x": 0.99, "y": 0.99, "width": 0.001, "height": 0.001, "label": "sun"}
    classes, places = paint([[CAT, TREE, dot], []], SMALL, 4, 8)
    expected = [[4, 4, 3, 3, 3, 3, 3, 3]] * 2 + [[0, 0, 0, 0, 3, 3, 3, 3]] * 2
    expected[3] = [0, 0, 0, 0, 3, 3, 3, 2]
    assert classes[0].tolist() == expected
    assert classes[1].eq(4).all()
    assert places[0, 0, 2, :4].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert places[0, 1, 2:, 0].tolist() == [-0.5, 0.5]
    assert not places[1].any()
    assert not places[0, :, 0, :2].any()
    assert torch.equal(paint([[dot, TREE, CAT]], SMALL, 4, 8)[0], classes[:1])
    assert paint([[dot]], SMALL, 1, 1)[0].tolist() == [[[2]]]


def test_painted_boxes_are_channels_beside_the_tokens():
    layout = LayoutConditioner(SMALL.replace(painted=3))
    assert layout.gives == Gives(concat=5, context=16)
    batch = {"boxes": [[CAT, TREE], [TREE]], "size": (4, 8)}
    cond = layout(batch, no_encode)
    assert cond.concat.shape == (2, 5, 4, 8)
    assert torch.equal(cond.concat[0, :3, 3, 0], layout.colours.weight[0])
    assert not cond.concat[0, :, 0, 0].any(), "outside all boxes nothing"
    dropped = layout(layout.drop(batch, torch.tensor([False, True])), no_encode)
    assert not dropped.concat[1].any()
    assert torch.equal(dropped.concat[0], cond.concat[0])
    with pytest.raises(ValueError, match=r"size: .*LatentDiffusion\.condition"):
        layout({"boxes": [[CAT]]}, no_encode)
    with pytest.raises(ValueError, match=r'batch\["boxes"\]'):
        layout({"tokens": layout.tokenize([[CAT]]), "size": (4, 8)}, no_encode)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([CAT] * 4, "^boxes: 4 in one image, but this model takes 3"),
        ([{**CAT, "width": 0.0}], "^boxes: x=0 y=0.5 width=0 height=0.5 has no area"),
        ([{**CAT, "height": -0.1}], "has no area"),
        ([{**CAT, "x": math.nan}], "has no area|not within"),
        ([{**CAT, "y": 0.6}], "^boxes: .*y=0.6.* is not within the image, .* divide pixels"),
        ([{**CAT, "x": -0.1}], "is not within the image"),
        ([{**CAT, "label": 4}], "^boxes: 4 is not a class of this model: use 0 to 3"),
        ([{**CAT, "label": "trees"}], "^boxes: 'trees' .*did you mean 'tree'"),
        ([{"x": 0.0, "y": 0.0, "label": 1}], "^boxes: a box needs .*: width, height missing in"),
    ],
)
def test_boxes_that_cannot_be_are_named(boxes, message):
    with pytest.raises(ValueError, match=message) as caught:
        layout_tokens(boxes, SMALL)
    assert "\n" not in str(caught.value)


def test_errors_of_a_batch_name_the_way_out():
    layout = LayoutConditioner(SMALL)
    with pytest.raises(ValueError, match=r'^boxes: .*batch\["boxes"\]'):
        layout({}, no_encode)
    with pytest.raises(ValueError, match="tokens: ids must lie in 0 to 99, not 0 to 100"):
        layout({"tokens": torch.tensor([[0, 100]])}, no_encode)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "classes: is required"),
        ({"classes": 2, "names": ("a",)}, "names: 1 names for 2 classes"),
        ({"classes": 2, "length": 91}, "length: 91 is not three tokens an object and two for the crop: use 92"),
        ({"classes": 2, "length": 90}, "use 92"),
        ({"classes": 600, "attributes": ("group", "occluded", "depiction", "inside")}, "vocabulary: 8192 cannot hold .* use 9601 or more"),
        ({"classes": 2, "attributes": ("crowd",)}, "attributes"),
        ({"classes": 2, "dropout": 1.5}, "dropout"),
    ],
)
def test_config_names_bad_values(bad, message):
    with pytest.raises(ValueError, match=message):
        LayoutConfig.parse(bad)
