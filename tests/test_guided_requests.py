"""Guidance and known pixels as requests: one call stacks them, image i is the same in any batch, what does not go together is refused."""

import re

import numpy as np
import pytest
from PIL import Image

from latentworks.checkpoints.native import save_folder
from latentworks.pipeline import Pipeline
from latentworks.request import SampleRequest, settings_of
from toys import diffusion_model, lw


@pytest.fixture(scope="module")
def of_text():
    model, recipe = diffusion_model()
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def unconditional():
    model, recipe = diffusion_model(name="unconditional-64")
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    hole = np.zeros((9, 14), np.uint8)
    hole[2:6, 3:9] = 255
    for name, pixels in {"x": rng.integers(0, 256, (9, 14, 3), np.uint8), "m": hole, "short": hole[:-1]}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    return tmp_path


def named(files, given):
    return {key: files / value if str(value).endswith(".png") else value for key, value in given.items()}


INPAINT = {"image": "x.png", "mask": "m.png"}
REPAINT = {**INPAINT, "sampler": "repaint", "jump": 1, "resample": 2}
REQUESTS = [
    {"guide_image": "small.png", "guide": "down", "guide_scale": 0.01},
    {"guide_image": "x.png", "guide_scale": 0.01},
    {"guide_image": "x.png", "guide": "grey", "guide_distance": "perceptual", "guide_scale": 0.01},
    {"guide_image": "x.png", "guide": "mask", "mask": "m.png", "guide_scale": 0.01},
    {"guide_image": "x.png", "guide_noise": 0.5},
    {"guide_image": "x.png", "guide_scale": 0.0, "guide_descent": 2},
    INPAINT,
    REPAINT,
    {**INPAINT, "guide_image": "x.png", "guide_scale": 0.01},
]


@pytest.mark.parametrize("given", REQUESTS, ids=" ".join)
def test_an_image_does_not_depend_on_its_batch(unconditional, files, given):
    one, three = (unconditional(**named(files, given), n=4, steps=3, seed=2, batch=batch) for batch in (1, 3))
    assert [image.size for image in one] == [(16, 16) if given.get("guide") == "down" else (14, 9)] * 4
    assert max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(one, three, strict=True)) <= 1
    assert len({image.tobytes() for image in one}) == 4


def test_an_image_guides_what_a_prompt_guides(of_text, files):
    """In one call; the settings are in what is drawn."""
    small = np.asarray(Image.open(files / "small.png"), float)

    def drawn(scale):
        settings = {"guide_image": files / "small.png", "guide": "down", "guide_scale": scale}
        return of_text("red blocks", n=2, steps=4, sampler="ddim", guidance=2.0, **settings)

    errors = [
        np.mean([np.square(np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), float) - small).mean() for image in drawn(scale)])
        for scale in (0.0, 0.02)
    ]
    assert errors[1] < errors[0]
    request = settings_of(drawn(0.02)[0])
    assert (str(request.guide_image), request.guide, request.guide_scale) == ("small.png", "down", 0.02)


def test_descent_brings_what_is_drawn_closer(unconditional, files):
    small = np.asarray(Image.open(files / "small.png"), float)

    def error(**descent):
        (image,) = unconditional(guide_image=files / "small.png", guide="down", guide_scale=0.0, steps=3, **descent)
        return np.square(np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), float) - small).mean()

    assert error(guide_descent=8) < error(guide_descent=1) < error()


@pytest.mark.parametrize("given", [INPAINT, REPAINT], ids=["known pixels", "repaint"])
def test_a_model_not_trained_to_inpaint_fills_a_hole(unconditional, files, given):
    original, hole = np.asarray(Image.open(files / "x.png")), np.asarray(Image.open(files / "m.png")) > 0
    other = original.copy()
    other[hole] = 0
    (image,), (again,) = (
        unconditional(**{**named(files, given), "image": picture}, steps=3) for picture in (files / "x.png", Image.fromarray(other))
    )
    drawn = np.asarray(image)
    assert np.array_equal(drawn[~hole], original[~hole])
    assert np.array_equal(drawn, np.asarray(again)), "what was in the hole shows"


def test_repaint_says_how_many_steps_it_takes(unconditional, files):
    request = unconditional.resolve(SampleRequest.parse({**named(files, INPAINT), "sampler": "repaint", "steps": 12, "resample": 2}))
    assert (request.jump, request.resample) == (10, 2)
    assert unconditional.length(request) == 22 == len(list(unconditional.stream(request)))


REFUSED = [
    ({"guide": "down"}, "guide: it says how an image guides: give that too (--guide-image)"),
    ({"guide_scale": 2.0}, "guide_scale: it says how an image guides"),
    ({"guide_noise": 0.1}, "guide_noise: it says how an image guides"),
    ({"guide_descent": 3}, "guide_descent: it says how an image guides"),
    ({"guide_image": "x.png", "guide_descent": 0}, "guide_descent: Input should be greater than or equal to 1 (got 0)"),
    ({"guide_image": "x.png", "guide_noise": 0.0}, "guide_noise: Input should be greater than 0 (got 0.0)"),
    ({"guide_image": "x.png", "guide_scale": -1.0}, "guide_scale: Input should be greater than or equal to 0 (got -1.0)"),
    ({"guide_image": "x.png", "guide": "sketch"}, "guide: Input should be 'identity', 'down', 'grey' or 'mask' (got 'sketch')"),
    ({"guide_image": "none.png"}, "guide_image: "),
    ({"guide_image": "x.png", "size": (16, 16)}, "guide_image: it makes 14 x 9 pixels, size makes 16 x 16: they must agree"),
    ({"guide_image": "x.png", "guide": "down"}, "guide: the image has 14x9 pixels, the samples 16x16: for 'down' give a smaller image"),
    ({"guide_image": "x.png", "guide": "mask"}, "guide: 'mask' needs a mask"),
    ({"mask": "m.png"}, "mask: it marks the hole of an image: give that too (--image)"),
    ({"mask": "m.png", "guide_image": "x.png"}, "mask: it marks the hole of an image: give that too (--image)"),
    ({"image": "x.png", "mask": "short.png"}, "mask: it makes 14 x 8 pixels, image makes 14 x 9: they must agree"),
    ({"sampler": "repaint"}, "sampler: repaint fills the hole of an image: give that and its mask"),
    ({**INPAINT, "sampler": "repaint", "steps": 10}, "jump: the sampler repaint cannot go back 10 of 10 steps: use fewer"),
    ({**INPAINT, "sampler": "ddim", "jump": 2}, "jump, resample: they belong to the sampler repaint, not to ddim: leave them out"),
    ({**INPAINT, "sampler": "paint"}, "unknown sampler 'paint': did you mean 'repaint'?"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[str(given) for given, _ in REFUSED])
def test_what_does_not_go_together_is_refused(unconditional, files, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        unconditional(**named(files, given))


def test_the_command_line_takes_them(tmp_path, files, monkeypatch, capsys):
    model, recipe = diffusion_model(name="unconditional-64")
    save_folder(tmp_path / "model", model, recipe)
    given = ("sample", tmp_path / "model", "--steps", 3, "-o", tmp_path / "out")
    inpaint = ("--image", files / "x.png", "--mask", files / "m.png", "--sampler", "repaint", "--jump", 1, "--resample", 2)
    guide = ("--guide-image", files / "small.png", "--guide", "down", "--guide-scale", 0.01, "--guide-distance", "l2", "--seed", 5)
    for options in (inpaint, guide):
        code, _, err = lw(monkeypatch, capsys, *given, *options)
        assert code == 0, err
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    code, _, err = lw(monkeypatch, capsys, *given, "--sampler", "repaint")
    assert code == 2
    assert "repaint fills the hole" in err
