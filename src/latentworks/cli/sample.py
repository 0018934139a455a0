"""`lw sample` and `lw demo`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latentworks.pipeline import Drawn, Pipeline
    from latentworks.request import SampleRequest

__all__ = ["demo", "sample"]

DEMO, ENLARGER = "openmoji-64", "openmoji-128"
PROMPTS = (
    "woman astronaut with dark skin tone",
    "man firefighter with medium skin tone",
    "woman cook with light skin tone",
    "man with red hair, light skin tone",
    "woman running with medium-light skin tone",
    "woman pilot with medium skin tone",
    "thumbs up with medium-dark skin tone",
    "grinning face",
    "fox",
    "octopus",
    "butterfly",
    "sunflower",
    "red apple",
    "locomotive",
    "guitar",
    "rainbow",
)


def sample(
    model: Annotated[str, typer.Argument(help="A bundled model's name (see `lw info`), a run folder or a model folder.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to draw; several prompts give several images.")] = None,
    n: Annotated[int, typer.Option("-n", help="Images for each prompt.")] = 1,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")] = Path("samples"),
    label: Annotated[str | None, typer.Option(help="Class, by name or number, for models of classes.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="JSON list of boxes: x, y, width, height (0 to 1), label; for layout models.")] = None,
    map: Annotated[Path | None, typer.Option(help="Label map, a PNG of numbers or of the model's colours; sets the size.")] = None,
    upscale: Annotated[Path | None, typer.Option(help="Image to enlarge, of any size.")] = None,
    back_projection: Annotated[int, typer.Option(help="Steps that make what is enlarged agree with the image it came from.")] = 0,
    image: Annotated[Path | None, typer.Option(help="Image to inpaint, or to start from.")] = None,
    mask: Annotated[Path | None, typer.Option(help="What of the image to draw anew: white on black, of the same size.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of the image is drawn anew without a mask, 0 to 1; default 0.6.")] = None,
    guide_image: Annotated[Path | None, typer.Option(help="Image that guides the drawing without retraining.")] = None,
    guide: Annotated[str | None, typer.Option(help="What of it is followed: identity, down (a smaller one), grey or mask.")] = None,
    guide_scale: Annotated[float | None, typer.Option(help="How much; default 1.")] = None,
    guide_noise: Annotated[float | None, typer.Option(help="Belief in it: the smaller, the closer it is followed, e.g. 0.05.")] = None,
    guide_descent: Annotated[int | None, typer.Option(help="Steps of descent that bring what is drawn closer to it, e.g. 5.")] = None,
    guide_distance: Annotated[str | None, typer.Option(help="l2 or perceptual; default l2.")] = None,
    to_seed: Annotated[int | None, typer.Option(help="The images lie between the noise of seed and of this one.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[int, typer.Option(help="Image i has seed + i, whatever its neighbours.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; default the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none; default the model's.")] = None,
    classifier: Annotated[Path | None, typer.Option(help="Run of a classifier recipe that guides towards --label.")] = None,
    classifier_scale: Annotated[float | None, typer.Option(help="How strongly it guides; 0 is not at all; default 1.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m, unipc; for holes repaint. Default: the model's.")] = None,
    jump: Annotated[int | None, typer.Option(help="Steps that repaint goes back; default 10.")] = None,
    resample: Annotated[int | None, typer.Option(help="How often repaint takes these steps; default 10.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 is deterministic, 1 as much as ddpm.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels, as 64 or WIDTHxHEIGHT; default the training size.")] = None,
    tile: Annotated[int | None, typer.Option(help="Draw in tiles of so many pixels a side: an image of any size in little memory.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels that neighbouring tiles share; default half a tile.")] = None,
    enlarge: Annotated[Path | None, typer.Option(help="Model of super-resolution that enlarges what is drawn, e.g. openmoji-128.")] = None,
    batch: Annotated[int, typer.Option(help="Images drawn at once; changes speed and memory only.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or bf16: faster where the processor has it.")] = "float32",
    metadata: Annotated[bool, typer.Option(help="Write the settings into the images.")] = True,
) -> None:
    """Draw images with a trained model.

    Example: lw sample runs/openmoji-64 "a cat with sunglasses" -n 4
    """
    from latentworks.engine import Engine
    from latentworks.output import save_image
    from latentworks.pipeline import load
    from latentworks.request import SampleRequest

    request = SampleRequest.parse(
        {
            "prompt": tuple(prompt) if prompt else None, "n": n, "label": label, "negative_prompt": negative, "seed": seed, "steps": steps,
            "guidance": guidance, "sampler": sampler, "eta": eta, "size": _size(size), "batch": batch, "boxes": _boxes(boxes), "map": map,
            "upscale": upscale, "back_projection": back_projection, "image": image, "mask": mask, "strength": strength, "to_seed": to_seed,
            "guide_image": guide_image, "guide": guide, "guide_scale": guide_scale, "guide_noise": guide_noise,
            "guide_descent": guide_descent, "guide_distance": guide_distance, "jump": jump, "resample": resample, "classifier": classifier,
            "classifier_scale": classifier_scale, "tile": tile, "overlap": overlap, "enlarge": enlarge,
        }
    )  # fmt: skip
    pipeline = load(model, Engine.parse({"device": device, "precision": precision}))
    for drawn in _with_progress(pipeline, request):
        for pixels, one in zip(drawn.pixels, drawn.requests, strict=True):
            typer.echo(save_image(out, pixels, one, metadata))


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images; the grid goes beside it.")] = Path("demo"),
) -> None:
    """Draw a captioned grid with the bundled models, the second of which enlarges what the first draws, and each image as a PNG.

    Example: lw demo --out demo
    """
    from latentworks.grids import save_sheet, sheet
    from latentworks.output import save_image
    from latentworks.pipeline import load, picture
    from latentworks.request import SampleRequest

    pipeline = load(DEMO)
    pictures, captions = [], []
    for drawn in _with_progress(pipeline, SampleRequest(prompt=PROMPTS, enlarge=Path(ENLARGER))):
        for pixels, one in zip(drawn.pixels, drawn.requests, strict=True):
            save_image(out, pixels, one)
            pictures.append(picture(pixels, one))
            captions.append(str(one.prompt))
    grid = out.parent / f"{out.resolve().name}.png"
    save_sheet(grid, sheet(pictures, captions, columns=4))
    typer.echo(f"{grid}: {len(pictures)} images by {DEMO} and {ENLARGER}; one PNG each, with its settings inside, in {out}/\n\nNext:")
    typer.echo(f'  lw sample {DEMO} "man farmer with dark skin tone" -n 4 --enlarge {ENLARGER}')
    typer.echo("  lw data openmoji openmoji && lw train openmoji-64-ae --data openmoji")
    typer.echo("  lw train --help")


def _size(text: str | None) -> tuple[int, int] | None:
    """ "64" or "96x64" (width x height) as (height, width). Raises: ValueError."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not (height or width).isdecimal():
        raise ValueError(f"--size {text!r}: write pixels as 64 or WIDTHxHEIGHT, e.g. 96x64")
    return int(height or width), int(width)


def _boxes(path: Path | None) -> list[dict[str, Any]] | None:
    """The boxes of a JSON file. Raises: ValueError naming it."""
    if path is None:
        return None
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--boxes {path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise ValueError(f'--boxes {path}: write a list such as [{{"x": 0.1, "y": 0.2, "width": 0.5, "height": 0.5, "label": "cat"}}]')
    return boxes


def _with_progress(pipeline: "Pipeline", request: "SampleRequest") -> "Iterator[Drawn]":
    """The finished images, with a bar over the steps of all of them on stderr."""
    from latentworks.cli.terminal import progress_bar
    from latentworks.pipeline import Drawn

    request = pipeline.resolve(request)
    batches = -(-len(request.prompts()) // request.batch)
    done = 0
    with progress_bar() as show:
        for event in pipeline.draw(request):
            if isinstance(event, Drawn):
                yield event
            else:
                done += 1
                show("drawing", done, batches * pipeline.length(request))
