"""Tiles of a latent: weights add up to one everywhere, what a pixel alone decides is unchanged, conditions follow their tile."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.tiling import areas, boxes_within, per_tile, tiled, windows
from latentworks.types import Cond
from toys import diffusion_model

SIZES = [(16, 16, 4), (17, 16, 0), (17, 16, 4), (37, 8, 3), (40, 16, 12), (64, 16, 4), (5, 16, 15), (100, 7, 6)]


@pytest.mark.parametrize(("size", "tile", "overlap"), SIZES)
def test_every_pixel_counts_once(size, tile, overlap):
    total, ends = torch.zeros(size), []
    for start, weights in windows(size, tile, overlap):
        assert weights.min() > 0
        total[start : start + len(weights)] += weights
        ends.append((start, start + len(weights)))
    torch.testing.assert_close(total, torch.ones(size))
    assert ends[0][0] == 0
    assert ends[-1][1] == size, "the remainder is covered"
    assert {stop - start for start, stop in ends} == {min(tile, size)}
    assert all(stop - start >= overlap for (_, stop), (start, _) in pairwise(ends))


def test_neighbours_fade_into_each_other_flat_at_both_ends():
    (_, left), (start, right) = windows(28, 16, 4)
    assert start == 12
    torch.testing.assert_close(right[:4], torch.sin(torch.tensor([1.0, 3.0, 5.0, 7.0]) * torch.pi / 16).square())
    torch.testing.assert_close(left[12:], right[:4].flip(0))
    assert torch.equal(left[:12], torch.ones(12))


def pointwise(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """A model in which every pixel depends on itself and its condition alone."""
    x0 = torch.sin(x_t) + t.view(-1, 1, 1, 1) / 1000
    x0 = x0 if cond.concat is None else x0 + cond.concat
    x0 = x0 if cond.context is None else x0 * cond.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)
    return x0 if cond.vector is None else x0 - cond.vector[:, :1, None, None]


def test_a_model_of_single_pixels_is_not_changed():
    g = torch.Generator().manual_seed(0)
    x_t, t = torch.randn(2, 3, 21, 34, generator=g), torch.tensor([10, 900])
    cond = Cond(*(torch.randn(shape, generator=g) for shape in ((2, 3, 21, 34), (2, 5, 8), (2, 16))))
    sizes = []

    def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        sizes.append(tuple(x_t.shape[2:]))
        return pointwise(x_t, t, cond)

    for condition in (cond, Cond(), Cond(concat=cond.concat)):
        torch.testing.assert_close(tiled(predict, 8, 2)(x_t, t, condition), pointwise(x_t, t, condition))
    assert set(sizes) == {(8, 8)}
    assert len(sizes) == 3 * 4 * 6
    assert torch.equal(tiled(predict, 64, 16)(x_t, t, cond), pointwise(x_t, t, cond))
    assert sizes[-1] == (21, 34), "what fits one tile is predicted as it is"
    tiled(predict, 24, 16)(x_t, t, cond)
    assert sizes[-1] == (21, 24)


def test_a_context_for_each_tile_goes_where_the_tile_is_and_through_guidance():
    """Tile i has context i: with no overlap its pixels show it. The guided picture is that of guiding each tile."""
    conds = [Cond(context=torch.full((1, 2, 4), float(i))) for i in range(6)]
    nothing = [Cond(context=torch.ones(1, 2, 4))] * 6
    x_t, t = torch.full((1, 1, 8, 12), 1.0), torch.tensor([0])
    x0 = tiled(pointwise, 4, 0)(x_t, t, per_tile(conds)) / torch.sin(torch.tensor(1.0))
    expected = torch.arange(6.0).view(2, 3).repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(x0[0, 0], expected)
    guided = classifier_free(tiled(pointwise, 4, 0), per_tile(conds), per_tile(nothing), 3.0)(x_t, t) / torch.sin(torch.tensor(1.0))
    torch.testing.assert_close(guided[0, 0], 1 + 3 * (expected - 1))
    assert areas((8, 12), 4, 0)[1] == (1 / 3, 0.0, 2 / 3, 0.5)
    with pytest.raises(ValueError, match="context: 6 were given, but a latent of 8x8 is cut into 2 x 2 tiles"):
        tiled(pointwise, 4, 0)(torch.zeros(1, 1, 8, 8), t, per_tile(conds))
    assert per_tile([Cond()] * 2) == Cond()


def test_a_real_model_sees_only_its_training_size():
    model, _ = diffusion_model(name="unconditional-64")
    x_t, t = torch.randn(2, 2, 20, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 500])
    with torch.no_grad():
        x0 = tiled(model.predict, 8, 2)(x_t, t, Cond())
        alone = tiled(model.predict, 8, 2)(x_t[1:], t[1:], Cond())
        corner = model.predict(x_t[:, :, :8, :8], t, Cond())
    torch.testing.assert_close(x0[1:], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x0[:, :, :5, :5], corner[:, :, :5, :5])


def box(x, y, width, height, label="cat", **more):
    return {"x": x, "y": y, "width": width, "height": height, "label": label, **more}


def test_boxes_are_cut_at_the_edges_of_their_tile():
    cat, sky = box(0.4, 0.1, 0.2, 0.2, occluded=True), box(0, 0, 1, 1, "sky")
    left, right = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5))
    (a, b), (c, d) = boxes_within([cat, sky], left), boxes_within([cat, sky], right)
    assert [round(a[k], 6) for k in ("x", "y", "width", "height")] == [0.8, 0.2, 0.2, 0.4]
    assert [round(c[k], 6) for k in ("x", "y", "width", "height")] == [0.0, 0.2, 0.2, 0.4]
    assert (a["label"], a["occluded"]) == ("cat", True)
    assert b == d == sky, "what fills a tile stays, however little of it that is"
    assert boxes_within([cat], (0.0, 0.5, 0.5, 1.0)) == []
    sliver = box(0.45, 0.1, 0.2, 0.2)
    assert boxes_within([sliver], left, visible=0.3) == []
    assert len(boxes_within([sliver], left, visible=0.2)) == 1
    (whole,) = boxes_within([cat], (0.0, 0.0, 1.0, 1.0))
    assert {key: pytest.approx(value) if key in "x y width height" else value for key, value in cat.items()} == whole
    beyond = boxes_within([sky], (0.0, 0.0, 2.0, 1.0))
    assert beyond == [box(0, 0, 0.5, 1, "sky")], "a canvas wider than the image"


def test_boxes_cut_to_all_tiles_cover_what_they_covered():
    boxes = [box(0.1, 0.2, 0.55, 0.3), box(0.7, 0.05, 0.2, 0.9)]
    tiles = areas((40, 64), 8, 0)
    pieces = [(piece, area) for area in tiles for piece in boxes_within(boxes, area, visible=0.0)]
    total = sum(piece["width"] * (x1 - x0) * piece["height"] * (y1 - y0) for piece, (x0, y0, x1, y1) in pieces)
    assert total == pytest.approx(sum(each["width"] * each["height"] for each in boxes))
    assert all(piece["x"] >= 0 and piece["x"] + piece["width"] <= 1 + 1e-9 for piece, _ in pieces)


@pytest.mark.parametrize(("tile", "overlap", "message"), [(0, 0, "tile: 0"), (8, 8, "overlap: 8 .* 0 to 7"), (8, -1, "overlap: -1")])
def test_sizes_that_cannot_be_are_named(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        tiled(pointwise, tile, overlap)
