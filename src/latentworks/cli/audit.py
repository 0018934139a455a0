"""`lw audit`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from PIL import Image

    from latentworks.metrics.audit import Audited, Suspect
    from latentworks.metrics.measurement import Progress
    from latentworks.metrics.reference import Reference

__all__ = ["audit"]

AUDIT, SHEET = "audit.json", "suspects.png"


def audit(
    model: Annotated[str, typer.Argument(help="A bundled model's name, a model folder or a run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of the images it was trained on, with held-out ones.")],
    n: Annotated[int | None, typer.Option("-n", help="Images to draw (500), for captions or classes of training images.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images to audit instead of drawing.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m or unipc. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image i is drawn with seed + i; also the seed of captions (0).")] = None,
    batch: Annotated[int, typer.Option(help="Images at once; changes speed and memory, not the verdicts.")] = 16,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for audit.json and suspects.png.")] = Path("audit"),
    card: Annotated[Path | None, typer.Option(help="Evaluation card of these weights, to write the summary into.")] = None,
) -> None:
    """Find out whether a model repeats its training images: those nearest to each sample, and a verdict for each and for the model.

    Example: lw audit runs/openmoji-64 --data openmoji -n 500 --out audit
    """
    from latentworks.cli.terminal import progress_bar
    from latentworks.metrics.audit import Audited
    from latentworks.metrics.card import add_audit

    _check(out, card, model)
    drawing = {"n": n, "sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed}
    begun = _begin(model, data, images, {key: value for key, value in drawing.items() if value is not None}, batch)
    with progress_bar() as show:
        for event in begun.events:
            if isinstance(event, Audited):
                audited = event
            else:
                show(*event)
    typer.echo(f"{begun.facts['model']}: {audited.audit.words}")
    for line in _details(audited):
        typer.echo(line)
    _write(audited, begun.facts, out)
    typer.echo(f"{out / AUDIT}: every sample; {out / SHEET}: the most suspicious beside the nearest training images")
    if card is not None:
        add_audit(card, {**audited.audit.summary(), **{key: begun.facts[key] for key in ("data", "given", "drawn") if key in begun.facts}})


def _check(out: Path, card: Path | None, model: str) -> None:
    """Raises: ValueError for a folder that cannot be written, or a card that cannot be added to or is of other weights."""
    from latentworks.checkpoints.native import weights_hash
    from latentworks.checkpoints.resolve import resolve_model
    from latentworks.metrics.card import check_name, read_card
    from latentworks.staging import check_place

    check_place(out / AUDIT)
    if card is None:
        return
    of = read_card(card).model
    check_name(card)
    if of.weights != weights_hash(resolve_model(model)):
        raise ValueError(f"--card {card} is of other weights ({of.name} {of.weights[:8]}): write one of {model} by lw evaluate --json")


class _Begun(NamedTuple):
    """What is audited, as it stands in audit.json, and the audit."""

    facts: dict[str, Any]
    events: "Iterator[Progress | Audited]"


def _begin(model: str, data: Path, images: Path | None, drawing: dict[str, Any], batch: int) -> _Begun:
    """Raises: ValueError before anything is drawn."""
    from latentworks.checkpoints.native import weights_hash
    from latentworks.checkpoints.resolve import resolve_model
    from latentworks.data.dataset import ImageDataset
    from latentworks.data.sources import FolderSource
    from latentworks.metrics.audit import audit, drawn, read
    from latentworks.metrics.features import Lite0Features
    from latentworks.metrics.reference import Reference, reference_images
    from latentworks.pipeline import load
    from latentworks.recipe import read_recipe
    from latentworks.request import SampleRequest

    if images is not None and drawing:
        option = next(iter(drawing))
        raise ValueError(f"{'-n' if option == 'n' else f'--{option}'} {drawing[option]}: --images are there already: leave one of both out")
    request = SampleRequest.parse({"n": 500, **drawing, "batch": batch})
    folder = resolve_model(model)
    recipe, network = read_recipe(folder / "recipe.json"), Lite0Features()
    facts: dict[str, Any] = {
        "model": recipe.name, "weights": weights_hash(folder), "data": data.resolve().name, "network": f"{network.name} {network.hash[:8]}"
    }  # fmt: skip
    training = reference_images(data, recipe, "train")
    held_out = reference_images(data, recipe, "held_out") if training.source.counts["held_out"] else None
    if images is None:
        pipeline = load(model)
        samples, through = drawn(pipeline, training, request), pipeline.model.first_stage
        full = pipeline.filled(request)
        facts["drawn"] = full.model_dump(mode="json", include={"n", "sampler", "steps", "eta", "guidance", "seed"}, exclude_none=True)
        events = audit(samples, request.n, training, network, held_out=held_out, through=through, batch=batch)
        return _Begun(facts, _noted(events, lambda: _other_files(folder, training)))
    source = FolderSource(images, channels=training.source.channels)
    given = Reference(images.resolve().name, source, ImageDataset(source, recipe.plain))
    facts["given"] = given.name  # they are compared as they are, through no first stage
    events = audit(read(given, batch), len(source), training, network, held_out=held_out, batch=batch)
    return _Begun(facts, _noted(events, lambda: _other_files(folder, training) + given.damaged))


def _noted(events: "Iterator[Progress | Audited]", notes: Callable[[], list[str]]) -> "Iterator[Progress | Audited]":
    """Events whose last one gets the notes that there are by then."""
    from latentworks.metrics.audit import Audited

    for event in events:
        if isinstance(event, Audited):
            event.audit.notes.extend(notes())
        yield event


def _other_files(folder: Path, training: "Reference") -> list[str]:
    """A note where the run that a model lies in was trained on other files; a model by itself does not say."""
    from latentworks.run_folder import read_mark

    known = read_mark(folder.parent / "facts.json").get("data", "")
    if known in ("", training.source.fingerprint()):
        return []
    return ["--data: names, sizes or times of its files are not those of training: copies of images that are not there are not found"]


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

    with staged_file(folder / AUDIT) as file:
        file.write_text(dumps({**facts, **audited.audit.as_json()}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_sheet(folder / SHEET, _sheet(audited.suspects))


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
