"""`lw evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latentworks.metrics.card import Card
    from latentworks.metrics.features import FeatureNetwork
    from latentworks.metrics.task import Task, Wanted

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model's name, a model folder or a run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of images to compare with.")],
    n: Annotated[int | None, typer.Option("-n", help="Images to draw (1000); a first stage draws none.")] = None,
    split: Annotated[str | None, typer.Option(help="train, held_out or all. Default: held_out for a first stage, else train.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m or unipc. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. Default: the model's.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise that ddim adds, 0 to 1 (0).")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image i is drawn with seed + i; also the seed of captions and subsets (0).")] = None,
    batch: Annotated[int | None, typer.Option(help="Images at once (16); changes speed and memory, the figures by rounding.")] = None,
    network: Annotated[str | None, typer.Option(help="lite0 (default), or the path of torch-fidelity's Inception weights.")] = None,
    bootstrap: Annotated[int | None, typer.Option(help="Resamples for a 95 % interval of the Fréchet distance, e.g. 100.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the evaluation card to this file, as Markdown beside it.")] = None,
    card: Annotated[Path | None, typer.Option(help="Repeat this card and say whether it agrees; exits with 1 if not.")] = None,
) -> None:
    """Measure a model: how far its images are from real ones, and what its first stage loses.

    Example: lw evaluate runs/openmoji-64 --data openmoji -n 1000 --json card.json
    """
    from latentworks.metrics.card import check_name, read_card, write_card

    if json is not None:
        check_name(json, card)
    drawing = {"n": n, "sampler": sampler, "steps": steps, "eta": eta, "guidance": guidance, "seed": seed, "bootstrap": bootstrap}
    old = None if card is None else read_card(card)
    wanted = _wanted({"split": split, "batch": batch, **drawing}, old)
    task = _prepare(model, data, wanted, _network(network, old), old)
    new = _measure(task, old)
    if json is not None:
        write_card(new, json)
    if old is not None and not _agrees(old, new):
        raise typer.Exit(1)


def _wanted(given: dict[str, Any], old: "Card | None") -> "Wanted":
    """What to measure: what is given, or what the card says, which nothing given may contradict but ``batch``. Raises: ValueError."""
    from latentworks.config import nearest
    from latentworks.metrics.task import Wanted, wanted_of

    given = {key: value for key, value in given.items() if value is not None}
    splits = ["train", "held_out", "all"]
    if given.get("split", "all") not in splits:
        raise ValueError(f"--split {given['split']!r}: {nearest(given['split'], splits)}")
    wanted = Wanted.parse(given)
    if old is None:
        return wanted
    said = wanted_of(old)
    for key, value in given.items():
        option = "-n" if key == "n" else f"--{key}"
        if old.drawing is None and key not in ("split", "batch"):
            raise ValueError(f"{option} {value}: the card is of a first stage, which draws nothing: leave it out")
        if key != "batch" and value != getattr(said, key):
            raise ValueError(f"{option} {value} contradicts the card, which says {getattr(said, key)}: leave one of both out")
    return said.replace(batch=wanted.batch) if "batch" in given else said


def _network(name: str | None, old: "Card | None") -> "FeatureNetwork":
    """The feature network that is given, or the card's. Raises: ValueError if it is another one, or cannot be had without a file."""
    from latentworks.metrics.features import Lite0Features, inception

    if old is not None and name is None and old.network.name != Lite0Features.name:
        raise ValueError(f"the card was measured with {old.network.name}: give the file of its weights by --network FILE")
    network = Lite0Features() if name in (None, "lite0") else inception(Path(name))
    if old is not None and network.name != old.network.name:
        raise ValueError(f"--network {name} is {network.name}, the card was measured with {old.network.name}: leave one of both out")
    return network


def _prepare(model: str, data: Path, wanted: "Wanted", network: "FeatureNetwork", old: "Card | None") -> "Task":
    """The task; of a card to be repeated, whatever differs from it is said before anything is measured."""
    from latentworks.checkpoints.resolve import resolve_model
    from latentworks.cli.terminal import progress_bar
    from latentworks.metrics.agreement import differences
    from latentworks.metrics.task import Task, prepare
    from latentworks.recipe import NOUNS, read_recipe

    if old is not None:
        kind = read_recipe(resolve_model(model) / "recipe.json").kind
        if kind != old.model.kind:
            raise ValueError(
                f"--card is of a {NOUNS[old.model.kind]} ({old.model.name}), {model} is a {NOUNS[kind]}: give one of the same kind"
            )
    with progress_bar() as show:
        for event in prepare(model, data, wanted, network):
            if isinstance(event, Task):
                task = event
            else:
                show(*event)
    if old is not None:
        for difference in differences(old, task.card):
            typer.echo(str(difference))
    return task


def _measure(task: "Task", old: "Card | None") -> "Card":
    """Measure, and print each figure; beside that of the card, if there is one."""
    from latentworks.cli.terminal import progress_bar
    from latentworks.metrics.agreement import figures
    from latentworks.metrics.measurement import Evaluation

    with progress_bar() as show:
        for event in task.events:
            if isinstance(event, Evaluation):
                evaluation = event
            else:
                show(*event)
    card = task.card.replace(measurements=evaluation.measurements, notes=evaluation.notes)
    for figure in card.measurements if old is None else figures(old, card):
        typer.echo(str(figure))
    for note in card.notes:
        typer.echo(f"note: {note}")
    return card


def _agrees(old: "Card", new: "Card") -> bool:
    """Say whether a card agrees with its repetition, and why not."""
    from latentworks.metrics.agreement import verdict

    agrees, why = verdict(old, new)
    typer.echo(("agrees: " if agrees else "does not agree: ") + why)
    return agrees
