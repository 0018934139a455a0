"""`lw train` and `lw encode`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["encode", "train"]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `lw info`) or a .json/.yaml file.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE. A run of this recipe in it is resumed.")] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(help="Trained first stage, for models of latents: a run or model folder. For a classifier: the model that it guides."),
    ] = None,
    from_model: Annotated[Path | None, typer.Option("--from", help="Fine-tune this model: start from its weights.")] = None,
    for_: Annotated[str | None, typer.Option("--for", help="Stop after this time, e.g. 110m; run the command again to go on.")] = None,
    steps: Annotated[int | None, typer.Option(help="Shorthand for --set train.steps=N.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe, e.g. --set train.batch=32.")] = None,
) -> None:
    """Train a first stage, a latent diffusion model or a classifier that guides one. Ctrl-C saves; the same command resumes exactly.

    Example: lw train openmoji-64-ae --data openmoji --for 30m
    """
    from latentworks.cli.terminal import parse_duration
    from latentworks.recipes import get_recipe
    from latentworks.runs import Message, RunRequest, train_run

    overrides = [*(set_ or []), *([f"train.steps={steps}"] if steps is not None else [])]
    chosen = get_recipe(recipe, overrides)
    request = RunRequest(
        recipe=chosen, data=data, out=out or Path("runs") / chosen.name, first_stage=first_stage, from_model=from_model,
        seconds=parse_duration(for_),
    )  # fmt: skip
    for event in train_run(request):
        typer.echo(event.text if isinstance(event, Message) else event.line())


def encode(
    recipe: Annotated[str, typer.Argument(help="The latent recipe that will be trained: a name or a .json/.yaml file.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    first_stage: Annotated[Path, typer.Option(help="Trained first stage: a run or model folder.")],
    out: Annotated[Path | None, typer.Option(help="The run folder that will be trained; default runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe.")] = None,
) -> None:
    """Fill the latent cache before training, so that `lw train` with the same arguments starts at once.

    Example: lw encode openmoji-64 --data openmoji --first-stage runs/openmoji-64-ae
    """
    from latentworks.cli.terminal import track
    from latentworks.preparation import RunRequest, prepare
    from latentworks.recipes import get_recipe

    chosen = get_recipe(recipe, set_)
    prepared = prepare(RunRequest(recipe=chosen, data=data, out=out or Path("runs") / chosen.name, first_stage=first_stage))
    if prepared.latents is None:
        raise ValueError(f"recipe {recipe!r} trains a first stage, which has no latents yet: give a latent recipe")
    for _ in track(prepared.latents.fill(), "encoding"):
        pass
    typer.echo(f"{len(prepared.latents)} images are encoded in {prepared.latents.folder}")
