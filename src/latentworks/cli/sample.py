"""`lw sample` and `lw demo`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from latentworks.pipeline import Drawn, Pipeline, SampleRequest

__all__ = ["demo", "sample"]

DEMO = "openmoji-64"
PROMPTS = (
    "woman astronaut with dark skin tone",
    "man firefighter with medium skin tone",
    "woman cook with light skin tone",
    "man with red hair, light skin tone",
    "woman running with medium-light skin tone",
    "woman pilot with medium skin tone",
    "thumbs up with medium-dark skin tone",
    "grinning face",
)


def sample(
    model: Annotated[str, typer.Argument(help="A bundled model's name (see `lw info`), a run folder or a model folder.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to draw; several prompts give several images.")] = None,
    n: Annotated[int, typer.Option("-n", help="Images for each prompt.")] = 1,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images.")] = Path("samples"),
    label: Annotated[str | None, typer.Option(help="Class, by name or number, for models of classes.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    seed: Annotated[int, typer.Option(help="Image i has seed + i, whatever its neighbours.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; default the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none; default the model's.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m or unipc; default the model's.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 is deterministic, 1 as much as ddpm.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels, as 64 or WIDTHxHEIGHT; default the training size.")] = None,
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
    from latentworks.pipeline import SampleRequest, load

    request = SampleRequest.parse(
        {
            "prompt": tuple(prompt) if prompt else None, "n": n, "label": label, "negative_prompt": negative, "seed": seed, "steps": steps,
            "guidance": guidance, "sampler": sampler, "eta": eta, "size": _size(size), "batch": batch,
        }
    )  # fmt: skip
    pipeline = load(model, Engine.parse({"device": device, "precision": precision}))
    for drawn in _with_progress(pipeline, request):
        for pixels, one in zip(drawn.pixels, drawn.requests, strict=True):
            typer.echo(save_image(out, pixels, one, metadata))


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the images; the grid goes beside it.")] = Path("demo"),
) -> None:
    """Draw a captioned grid with the bundled text-to-image model, and each image as a PNG.

    Example: lw demo --out demo
    """
    from latentworks.grids import save_sheet, sheet
    from latentworks.output import save_image
    from latentworks.pipeline import SampleRequest, load, picture

    pipeline = load(DEMO)
    pictures, captions = [], []
    for drawn in _with_progress(pipeline, SampleRequest(prompt=PROMPTS, n=2)):
        for pixels, one in zip(drawn.pixels, drawn.requests, strict=True):
            save_image(out, pixels, one)
            pictures.append(picture(pixels, one))
            captions.append(str(one.prompt))
    grid = out.parent / f"{out.resolve().name}.png"
    save_sheet(grid, sheet(pictures, captions, columns=4, scale=2))
    typer.echo(f"{grid}: {len(pictures)} images by {DEMO}; one PNG each, with its settings inside, in {out}/\n\nNext:")
    typer.echo(f'  lw sample {DEMO} "man farmer with dark skin tone" -n 4')
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


def _with_progress(pipeline: "Pipeline", request: "SampleRequest") -> "Iterator[Drawn]":
    """The finished images, with a bar over the steps of all of them on stderr."""
    from latentworks.cli.terminal import progress_bar
    from latentworks.pipeline import Drawn

    request = pipeline.resolve(request)
    assert request.steps is not None
    batches = -(-len(request.prompts()) // request.batch)
    done = 0
    with progress_bar() as show:
        for event in pipeline.draw(request):
            if isinstance(event, Drawn):
                yield event
            else:
                done += 1
                show("drawing", done, batches * request.steps)
