"""The report of a run: one HTML page that needs nothing else, neither network nor files, and can be read without scripts."""

from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from latentworks.recipe import NOUNS
from latentworks.report.blocks import Block, Missing, Section, Text
from latentworks.report.documents import audit, card, sweep, swept
from latentworks.report.history import buckets, curves
from latentworks.report.pictures import grids, reconstructions
from latentworks.report.run import Run, read_run
from latentworks.report.summary import settings, summary

__all__ = ["Page", "report"]


class Page(NamedTuple):
    """The HTML, and a line on each thing that could not be read and is left out; they stand in the page too."""

    html: str
    notes: list[str]


def report(
    folder: Path, data: Path | None = None, card_file: Path | None = None, audit_folder: Path | None = None, sweeps: Sequence[Path] = ()
) -> Page:
    """Everything that a run folder and what was measured of its model have to say.

    ``data``: a folder with held-out images to reconstruct. The card, the audit and sweeps are looked for in the run folder (card.json,
    audit/, sweep*.json); one that is damaged there is a note. Raises: ValueError for a folder that is no run, for what was asked for
    by name and cannot be shown, and without the packages of the extra ``report``.
    """
    run = read_run(folder)
    notes = list(run.notes)
    sections = [section for section in _sections(run, data, card_file, audit_folder, sweeps, notes) if section.blocks]
    missing = [one for name, one in _missing(run).items() if name not in {section.name for section in sections}]
    return Page(_render(run, sections, missing, notes), notes)


def _sections(
    run: Run, data: Path | None, card_file: Path | None, audit_folder: Path | None, sweeps: Sequence[Path], notes: list[str]
) -> Iterator[Section]:
    """In the order of the page; those without blocks are left out by the caller. ``notes`` grows on the way."""

    def found(given: Path | None, name: str, read: Callable[[Path], list[Block]]) -> list[Block]:
        """What was named, or is in the run folder: there a damaged one is a note."""
        if given is not None:
            return read(given)
        try:
            return read(run.folder / name) if (run.folder / name).exists() else []
        except ValueError as error:
            notes.append(str(error))
            return []

    own = run.weights()
    of_card = found(card_file, "card.json", partial(card, own=own, notes=notes))  # what can be wrong comes before what takes long
    of_audit = found(audit_folder, "audit", partial(audit, own=own, notes=notes))
    inside = [path.name for path in sorted(run.folder.glob("sweep*.json")) if path.resolve() not in {given.resolve() for given in sweeps}]
    cards = list[dict[str, Any]]()
    read = partial(sweep, own=own, notes=notes, cards=cards)
    of_sweeps = [block for i, given in enumerate(sweeps) for block in read(given, name=f"given{i}")]
    for i, name in enumerate(inside):
        of_sweeps += found(None, name, partial(read, name=f"own{i}"))
    of_sweeps += swept(sorted(cards, key=itemgetter("sampler", "steps", "guidance")), "cards", "All cards of the sweep")
    reconstructed = [] if data is None else reconstructions(run, data, notes)
    quoted = run.attribution(data)
    yield Section("summary", "Summary", summary(run, notes))
    yield Section("curves", "Curves", curves(run))
    yield Section("buckets", "Losses by step of the process", buckets(run))
    yield Section("grids", "Pictures over time", grids(run, notes))
    yield Section("reconstructions", "Reconstructions and their error", reconstructed)
    yield Section("sweeps", "Sweeps of guidance and steps", of_sweeps)
    yield Section("card", "Evaluation card", of_card)
    yield Section("audit", "Audit", of_audit)
    yield Section("attribution", "Training images", [Text(quoted, quote=True)] if quoted else [])
    yield Section("settings", "All settings", settings(run))


def _missing(run: Run) -> dict[str, Missing]:
    """How each section that a run of this kind may have comes to be, by its name. RUN and DIR stand for folders."""
    kind = run.recipe.kind
    known = {"curves": Missing("Curves", "lw train, until the first figures are logged")}
    if kind != "first_stage":
        known["buckets"] = Missing("Losses by step of the process", "lw train with a folder that has held-out images")
    if kind != "classifier":
        known["grids"] = Missing("Pictures over time", "lw train, until intervals.evaluate steps are done")
        known["reconstructions"] = Missing("Reconstructions and their error", "lw report RUN --data DIR")
        known["card"] = Missing("Evaluation card", "lw evaluate RUN --data DIR --json RUN/card.json")
    if kind == "latent_diffusion":
        known["sweeps"] = Missing(
            "Sweeps of guidance and steps", "lw evaluate RUN --data DIR --steps 10 --json RUN/sweep-10.json, then 20, …"
        )
        known["audit"] = Missing("Audit", "lw audit RUN --data DIR --out RUN/audit")
    return known


def _render(run: Run, sections: Sequence[Section], missing: Sequence[Missing], notes: Sequence[str]) -> str:
    """The page; whatever comes from files is escaped, and no script but the page's own may run."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ValueError("a report needs Jinja: pip install 'latentworks[report]'") from None
    templates = files("latentworks.report") / "templates"
    style, script = (templates.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    loader = PackageLoader("latentworks.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html").render(
        title=f"{run.recipe.name}: report of a run", heading=run.recipe.name, noun=NOUNS[run.recipe.kind], sections=sections,
        missing=missing, notes=notes, style=style, script=script, script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        version=version("latentworks"),
    )  # fmt: skip
