"""`lw data`: get the demonstration data, check a folder."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Get and check data.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def openmoji(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set; a folder that is new or empty.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    background: Annotated[str, typer.Option(help="An opaque CSS colour behind the emoji.")] = "white",
) -> None:
    """Draw the OpenMoji set: about 4,500 captioned emoji with a held-out part (CC BY-SA 4.0).

    Example: lw data openmoji openmoji
    """
    from latentworks.cli.terminal import track
    from latentworks.data.openmoji import write_openmoji

    *_, (count, _) = track(write_openmoji(folder, size, background), "drawing")
    typer.echo(f"{folder}: {count} emoji of {size} x {size} pixels, captions in metadata.jsonl, licence in LICENSE.txt (CC BY-SA 4.0)")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    min_size: Annotated[int, typer.Option(help="The shorter side in pixels below which an image is too small.")] = 32,
) -> None:
    """Decode every image and list what is corrupt, duplicate, too small or huge. Exit code 1 if there are problems.

    Example: lw data check photos --min-size 64
    """
    from latentworks.cli.terminal import progress_bar
    from latentworks.data.check import check

    with progress_bar() as show:
        for report in check(folder, min_size):
            show("checking", report.done, report.total)
    for line in report.lines():
        typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(help="Where to write the data set; a folder that is new or empty.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 128,
    n: Annotated[int, typer.Option("-n", help="Scenes; one in twenty is held out.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Scene i is a function of the seed and i alone.")] = 0,
    categories: Annotated[int, typer.Option(help="Kinds of objects, 2 to 48.")] = 48,
    single: Annotated[bool, typer.Option("--single", help="One object an image, its class the folder it lies in; no annotations.")] = False,
) -> None:
    """Compose scenes of emoji with boxes, masks, label maps and captions, in COCO's format (CC BY-SA 4.0).

    Example: lw data scenes scenes --size 128 -n 10000
    """
    from latentworks.cli.terminal import track
    from latentworks.data.scenes import write_scenes, write_singles

    if single:
        *_, (count, _) = track(write_singles(folder, size, n, seed, categories), "composing")
        typer.echo(f"{folder}: {count} images of {size} x {size} pixels in folders of {categories} classes (CC BY-SA 4.0)")
        return
    *_, (count, _) = track(write_scenes(folder, size, n, seed, categories), "composing")
    typer.echo(f"{folder}: {count} scenes of {size} x {size} pixels, with instances.json, captions.json and label maps (CC BY-SA 4.0)")
