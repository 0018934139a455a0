"""Image i is the same whatever its neighbours; its settings travel inside it and draw it again; what a model cannot do is refused."""

import json
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from latentworks.diffusion.samplers import SAMPLERS
from latentworks.output import file_stem, save_image
from latentworks.pipeline import Drawn, Pipeline, picture
from latentworks.request import SampleRequest, settings_of
from toys import diffusion_model

PROMPTS = ("red blocks", "green blocks", "", "blocks")


@pytest.fixture(scope="module")
def pipeline():
    model, recipe = diffusion_model()
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def of_classes():
    model, recipe = diffusion_model(
        "conditioners.0.classes=3", "conditioners.0.names=[apple, bear, cat]", "conditioners.0.width=16", name="class-64"
    )
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def unconditional():
    model, recipe = diffusion_model(name="unconditional-64")
    return Pipeline(model, recipe.sampling, 16)


@pytest.fixture(scope="module")
def of_maps():
    model, recipe = diffusion_model("conditioners=[{kind: segmentation, classes: 3, stages: 1}]", name="unconditional-64")
    return Pipeline(model, recipe.sampling, 16)


def latents(pipeline, request):
    """The final latents of all images of a request, batch by batch."""
    request = SampleRequest(**request)
    starts = range(0, len(request.prompts()), request.batch)
    return torch.cat([list(pipeline.stream(request, start, start + request.batch))[-1].x for start in starts])


SETTINGS = [{"sampler": name} for name in SAMPLERS] + [
    {"sampler": "ddim", "eta": 0.5},
    {"guidance": 1},
    {"negative_prompt": "red"},
    {"size": (8, 24)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_image_does_not_depend_on_its_batch(pipeline, settings):
    request = {"steps": 4, "guidance": 3.0, "seed": 5, "prompt": PROMPTS, "n": 4, **settings}
    one, three, sixteen = (latents(pipeline, {**request, "batch": batch}) for batch in (1, 3, 16))
    assert one.shape == (16, 2, *(side // 2 for side in settings.get("size", (16, 16))))
    assert one.std() > 0.1
    torch.testing.assert_close(three, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sixteen, one, atol=1e-5, rtol=1e-5)
    alone = latents(pipeline, {**request, "prompt": PROMPTS[1], "n": 1, "seed": 5 + 6})
    torch.testing.assert_close(alone[0], one[6], atol=1e-5, rtol=1e-5)  # with other neighbours, and first instead of seventh
    assert len({round(float(x.sum()), 4) for x in one}) == 16, "all sixteen differ"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_models_do_so_as_well(of_classes, unconditional, sampler):
    for pipeline, condition in ((of_classes, {"label": "bear", "guidance": 2.0}), (of_classes, {}), (unconditional, {})):
        request = {"steps": 3, "sampler": sampler, "n": 5, **condition}
        one, three = (latents(pipeline, {**request, "batch": batch}) for batch in (1, 3))
        torch.testing.assert_close(three, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_step_counts_are_exact(unconditional, sampler, steps):
    stream = unconditional.stream(SampleRequest(sampler=sampler, steps=steps))
    if steps == 1000:
        stream = (step for step, _ in zip(stream, range(3), strict=False))
        assert [step.t for step in stream] == [998, 997, 996]
    else:
        assert len(list(stream)) == steps


def test_conditions_and_guidance_matter(pipeline, of_classes):
    def draw(**request):
        return latents(pipeline, {"steps": 3, "guidance": 1.0, "prompt": "red blocks", **request})

    plain = draw()
    assert not torch.allclose(plain, draw(prompt="green blocks"), atol=1e-3)
    assert not torch.allclose(plain, draw(guidance=3.0), atol=1e-3)
    assert not torch.allclose(draw(guidance=3.0), draw(guidance=3.0, negative_prompt="green"), atol=1e-3)
    torch.testing.assert_close(draw(guidance=3.0), draw(guidance=3.0, negative_prompt=""), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(draw(prompt=None), draw(prompt=""))
    by_name, by_number = (latents(of_classes, {"steps": 2, "label": label}) for label in ("cat", 2))
    assert torch.equal(by_name, by_number)
    assert not torch.allclose(by_name, latents(of_classes, {"steps": 2}), atol=1e-3)


def test_a_model_without_a_null_class_is_sampled_without_guidance():
    model, recipe = diffusion_model(
        "conditioners.0.classes=3", "conditioners.0.null=false", "conditioners.0.dropout=0", "conditioners.0.width=16", name="class-64"
    )
    pipeline = Pipeline(model, recipe.sampling, 16)
    assert pipeline.resolve(SampleRequest(label=1)).guidance == 1
    assert len(pipeline(label=1, steps=2)) == 1
    with pytest.raises(ValueError, match="that the model can do without"):
        pipeline(label=1, steps=2, guidance=2.0)
    with pytest.raises(ValueError, match="no null class"):
        pipeline(steps=2)


def test_gradients_are_off_inside_the_stream_and_untouched_outside(pipeline):
    for step in pipeline.stream(SampleRequest(prompt="red", steps=3)):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad
    stream = pipeline.stream(SampleRequest(prompt="red", steps=3))
    next(stream)
    stream.close()
    assert torch.is_grad_enabled()


REFUSED = [
    ("unconditional", {"prompt": "red"}, "prompt: this model does not take text; it takes no condition"),
    ("of_classes", {"prompt": "red"}, "prompt: this model does not take text; it takes a class"),
    ("of_classes", {"negative_prompt": "red"}, "negative_prompt: this model does not take text; it takes a class"),
    ("of_classes", {"label": "bare"}, "label: 'bare' is not a class of this model: did you mean 'bear'?"),
    ("of_classes", {"label": 3}, "label: 3 is not a class of this model: use 0 to 2"),
    ("pipeline", {"label": 1}, "label: this model does not take a class; it takes text"),
    ("unconditional", {"guidance": 2.0}, "guidance: 2.0 needs a condition to guide towards"),
    ("of_maps", {}, "map: this model needs a label map: give it (--map on the command line)"),
    ("pipeline", {"guidance": 1.0, "negative_prompt": "red"}, "negative_prompt: without guidance it has no effect"),
    ("pipeline", {"guidance": float("nan")}, "guidance scale: nan is not a finite number"),
    ("pipeline", {"eta": 0.5}, "eta: 0.5 belongs to the sampler ddim"),
    ("pipeline", {"sampler": "dpmp_2m"}, "unknown sampler 'dpmp_2m': did you mean 'dpmpp_2m'?"),
    ("pipeline", {"steps": 1001}, "steps: 1001 is not possible, this process has 1000 steps: use 1 to 1000"),
    ("pipeline", {"size": (0, 16)}, "size: 16 x 0 has no pixels"),
    ("pipeline", {"upscale": "a.png"}, "upscale: this model does not take a small image; it takes text"),
    ("pipeline", {"strength": 0.5}, "strength: it says how much of an image is drawn anew: give --image"),
    ("pipeline", {"position": 0.5}, "position: it lies between two seeds: give to_seed as well"),
    ("pipeline", {"back_projection": 1}, "back_projection: it belongs to upscaling"),
    ("pipeline", {"n": 0}, "n: Input should be greater than or equal to 1"),
    ("pipeline", {"stpes": 2}, "unknown key 'stpes': did you mean 'steps'?"),
]


@pytest.mark.parametrize(("model", "settings", "message"), REFUSED, ids=[str(settings) for _, settings, _ in REFUSED])
def test_what_a_model_cannot_do_is_refused(model, settings, message, request):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        request.getfixturevalue(model)(**settings)
    assert "\n" not in str(error.value)


def test_an_images_settings_draw_it_again(pipeline, tmp_path):
    request = SampleRequest(
        prompt=("café \N{BEAR FACE}", "a, b"), n=3, seed=7, steps=3, guidance=2.5, negative_prompt="red", size=(12, 24), batch=4
    )
    finished = [event for event in pipeline.draw(request) if isinstance(event, Drawn)]
    assert [(drawn.done, drawn.total) for drawn in finished] == [(4, 6), (6, 6)]
    paths = [save_image(tmp_path, *pair) for drawn in finished for pair in zip(drawn.pixels, drawn.requests, strict=True)]
    assert [path.name for path in paths] == ["café-7.png", "café-8.png", "café-9.png", "a-b-10.png", "a-b-11.png", "a-b-12.png"]
    image = Image.open(paths[4])
    again = settings_of(image)
    assert (again.prompt, again.seed, again.n, again.size, again.steps) == ("a, b", 11, 1, (12, 24), 3)
    assert image.info["parameters"].endswith("Steps: 3, Sampler: dpmpp_2m, CFG scale: 2.5, Seed: 11, Size: 24x12")
    (redrawn,) = pipeline(**again.model_dump(exclude_none=True))
    difference = np.abs(np.asarray(redrawn, int) - np.asarray(image, int))
    assert difference.max() <= 1, "it was drawn in another batch, whose last bits differ"
    assert settings_of(Image.open(paths[0])).prompt == "café \N{BEAR FACE}"


def test_names_do_not_collide(pipeline, tmp_path):
    (drawn,) = [event for event in pipeline.draw(SampleRequest(prompt="a?", steps=1)) if isinstance(event, Drawn)]
    names = [save_image(tmp_path, drawn.pixels[0], drawn.requests[0], metadata=False).name for _ in range(3)]
    assert names == ["a-0.png", "a-0-2.png", "a-0-3.png"]
    with Image.open(tmp_path / "a-0.png") as image, pytest.raises(ValueError, match="carries no settings"):
        settings_of(image)
    assert len(file_stem(SampleRequest(prompt="long " * 99)).encode()) < 80
    assert file_stem(SampleRequest(prompt="../../etc")) == "etc-0"
    assert file_stem(SampleRequest(label="cat")) == "class-cat-0"


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix"), [(1, "uint16", ".png"), (1, "uint8", ".png"), (5, "uint8", ".tiff"), (3, "uint16", ".tiff")]
)
def test_pixels_are_written_losslessly(channels, dtype, suffix, tmp_path):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 4, channels), dtype)
    request = SampleRequest(prompt="café", steps=2, sampler="ddim", guidance=1.0, size=(6, 4))
    path = save_image(tmp_path, pixels, request)
    assert path.suffix == suffix
    if suffix == ".png":
        image = Image.open(path)
        assert np.array_equal(np.asarray(image, dtype).reshape(pixels.shape), pixels)
        assert settings_of(image) == request
        assert settings_of(picture(pixels, request)) == request
    else:
        with tifffile.TiffFile(path) as file:
            assert np.array_equal(file.asarray(), pixels)
            assert json.loads(file.pages[0].description)["prompt"] == "café"
        with pytest.raises(ValueError, match="are no picture Pillow can hold"):
            picture(pixels, request)


def test_a_deep_model_draws_deep_images(unconditional):
    model, recipe = unconditional.model, diffusion_model(name="unconditional-64")[1]
    (drawn,) = [
        event for event in Pipeline(model, recipe.sampling, 16, depth="uint16").draw(SampleRequest(steps=2)) if isinstance(event, Drawn)
    ]
    assert drawn.pixels.dtype == np.uint16
