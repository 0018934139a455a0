"""`lw report`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; it may still be training.")],
    data: Annotated[Path | None, typer.Option(help="Folder of images, whose held-out ones are reconstructed with their error.")] = None,
    card: Annotated[Path | None, typer.Option(help="An evaluation card. Default: RUN/card.json, if there.")] = None,
    audit: Annotated[Path | None, typer.Option(help="Folder of an audit. Default: RUN/audit, if there.")] = None,
    sweep: Annotated[
        list[Path] | None, typer.Option(help="A card, or a JSON file of distances by sampler, steps and guidance; more in RUN/sweep*.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write. Default: RUN/report.html.")] = None,
) -> None:
    """Write what there is to know of a run into one HTML file: curves, pictures over time, reconstructions, what was measured.

    Example: lw report runs/openmoji-64-ae --data openmoji
    """
    from latentworks.report import report as write
    from latentworks.staging import staged_file

    target = out or run / "report.html"
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder: give a file, e.g. {target / 'report.html'}")
    page = write(run, data, card, audit, sweep or ())
    with staged_file(target) as file:
        file.write_text(page.html, encoding="utf-8")
    for note in page.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{target}: {len(page.html.encode()) / 1e6:.1f} MB, one file that needs no other")
