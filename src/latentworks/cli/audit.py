"""`lw audit`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL import Image

    from latentworks.metrics.audit import Audited, Suspect
    from latentworks.metrics.measurement import Progress

__all__ = ["audit"]


def audit(
    model: Annotated[str, typer.Argument(help="A bundled model's name, a model folder or a run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of the images it was trained on, with held-out ones.")],
    n: Annotated[int, typer.Option("-n", help="Images to draw, for captions or classes of training images.")] = 500,
    images: Annotated[Path | None, typer.Option(help="Folder of images to audit instead of drawing.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m or unipc. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Image i is drawn with seed + i; also the seed of captions.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at once; changes speed and memory, not the verdicts.")] = 16,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for audit.json and suspects.png.")] = Path("audit"),
    card: Annotated[Path | None, typer.Option(help="Evaluation card to write the summary into.")] = None,
) -> None:
    """Find out whether a model repeats its training images: those nearest to each sample, and a verdict for each and for the model.

    Example: lw audit runs/openmoji-64 --data openmoji -n 500 --out audit
    """
    from latentworks.cli.terminal import progress_bar
    from latentworks.metrics.audit import Audited
    from latentworks.metrics.card import add_audit, read_card

    if card is not None:
        read_card(card)  # one that cannot be added to is better found now
    drawing = {"n": n, "sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed, "batch": batch}
    name, events = _begin(model, data, images, drawing)
    with progress_bar() as show:
        for event in events:
            if isinstance(event, Audited):
                audited = event
            else:
                show(*event)
    made = {"images": images.resolve().name} if images else {"drawn": drawing}
    _write(audited, {"model": name, "data": data.resolve().name, **made}, out)
    typer.echo(f"{name}: {audited.audit.words}")
    for line in _details(audited):
        typer.echo(line)
    typer.echo(f"{out / 'audit.json'}: every sample; {out / 'suspects.png'}: the most suspicious beside the nearest training images")
    if card is not None:
        add_audit(card, audited.audit.summary())


def _begin(model: str, data: Path, images: Path | None, drawing: dict[str, Any]) -> "tuple[str, Iterator[Progress | Audited]]":
    """The model's name and its audit. Raises: ValueError before anything is drawn."""
    from latentworks.checkpoints.resolve import resolve_model
    from latentworks.data.dataset import ImageDataset
    from latentworks.data.sources import FolderSource
    from latentworks.metrics.audit import audit, drawn, read
    from latentworks.metrics.features import Lite0Features
    from latentworks.metrics.reference import Reference, reference_images
    from latentworks.pipeline import load
    from latentworks.recipe import read_recipe
    from latentworks.request import SampleRequest

    request = SampleRequest.parse(drawing)
    recipe = read_recipe(resolve_model(model) / "recipe.json")
    training = reference_images(data, recipe, "train")
    held_out = reference_images(data, recipe, "held_out") if training.source.counts["held_out"] else None
    through = None  # images from elsewhere are compared as they are
    if images is None:
        pipeline = load(model)
        samples, count, through = drawn(pipeline, training, request), request.n, pipeline.model.first_stage
    else:
        source = FolderSource(images, channels=training.source.channels)
        samples, count = read(Reference(images.name, source, ImageDataset(source, recipe.plain)), request.batch), len(source)
    return recipe.name, audit(samples, count, training, Lite0Features(), held_out=held_out, through=through, batch=request.batch)


def _details(audited: "Audited") -> Iterator[str]:
    """What was copied most often, and notes."""
    for one in audited.audit.copied[:10]:
        yield f"  {one.copies} of {one.name}" + (f", which is {one.times} times in the training set" if one.times > 1 else "")
    yield from (f"note: {note}" for note in audited.audit.notes)


def _write(audited: "Audited", facts: dict[str, Any], folder: Path) -> None:
    """The JSON and the sheet, each whole or not at all."""
    from json import dumps

    from latentworks.grids import save_sheet
    from latentworks.staging import staged_file

    with staged_file(folder / "audit.json") as file:
        file.write_text(dumps({**facts, **audited.audit.as_json()}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_sheet(folder / "suspects.png", _sheet(audited.suspects))


def _sheet(suspects: "list[Suspect]") -> "Image.Image":
    """Two suspects a row: each sample, its nearest training image by features, and the nearest by pixels."""
    from PIL import Image

    from latentworks.data.transforms import from_tensor
    from latentworks.grids import sheet

    pictures, captions = list[Image.Image](), list[str]()
    for verdict, shown in suspects:
        spaces = list(verdict.nearest)
        by_pixels = verdict.closest if verdict.closest != spaces[0] else spaces[1]
        captions.append(f"{'COPY' if verdict.copy else 'own'} {verdict.score:.1f}: {verdict.name}")
        for space in (spaces[0], by_pixels):
            match = verdict.nearest[space]
            captions.append(f"{space}: {match.distance:.3g}, ratio {match.ratio:.2f}, {Path(match.name).stem}")
        pictures += [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in from_tensor(shown * 2 - 1)]
    side = pictures[0].width
    return sheet(pictures, captions, columns=6, scale=max(1, -(-128 // side)))
