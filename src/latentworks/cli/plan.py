"""`lw plan`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from latentworks.recipe import Recipe

__all__ = ["plan"]


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `lw info`) or a .json/.yaml file.")],
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a micro-batch. Default: the recipe's.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: the recipe's.")] = None,
    measure: Annotated[bool, typer.Option(help="Train a narrow twin for 20 steps, to tell the time a run takes here.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a setting of the recipe.")] = None,
) -> None:
    """Say what training and sampling a recipe needs: memory, time on this machine, and days of a V100, before anything is trained.

    Example: lw plan ldm-4-celebahq-256 --batch 4
    """
    from latentworks.costs.rehearsal import resized
    from latentworks.recipes import get_recipe

    chosen = resized(get_recipe(recipe, [*(set_ or []), *([f"train.batch={batch}"] if batch else [])]), size)
    for line in (*_memory(chosen), *_time(chosen, measure)):
        typer.echo(line)


def _memory(recipe: "Recipe") -> Iterator[str]:
    from latentworks.costs.memory import DRAWING, PROGRAM, sampling_memory, training_memory
    from latentworks.train import make_accelerator

    config, side = recipe.train, recipe.data.out_size
    bf16 = make_accelerator(config).mixed_precision == "bf16"
    needs = training_memory(recipe, bf16=bf16)
    yield f"training {recipe.name}, batch {config.batch}, {side} px, {'bf16' if bf16 else 'float32'}: {_size(needs.total)}"
    parts = {name: value for name, value in needs._asdict().items() if name != "total"} | {"program": PROGRAM}
    yield "  of which " + ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
    for n in () if recipe.kind == "classifier" else (1, 16):
        drawn = sampling_memory(recipe, n)
        yield f"{'sampling' if recipe.kind == 'latent_diffusion' else 'encoding and decoding'}, {n} at once, float32: {_size(drawn.total)}"
    yield (
        f"  method: fake tensors through one step, what is alive at once added up, and {_size(PROGRAM)} of program ({_size(DRAWING)} when "
        "sampling); gradients and activations are not both there in full at the height"
    )


def _time(recipe: "Recipe", measure: bool) -> Iterator[str]:
    from latentworks.cli.terminal import progress_bar
    from latentworks.costs.count import training_operations
    from latentworks.costs.time import A100_PEAK, A100_SPEED, STEPS, V100_PER_A100, run_seconds, seconds_of_steps, twin, v100_days
    from latentworks.recipes import get_recipe
    from latentworks.recipes.published import PUBLISHED

    config, work = recipe.train, training_operations(recipe)
    total = config.steps * config.batch * config.accumulate * work
    yield f"training in all: {config.steps:,} steps, {work / 1e9:,.1f} GFLOP an image, {total:.2g} FLOP"
    if measure:
        small = twin(recipe)
        seconds = list[float]()
        with progress_bar() as show:
            for each in seconds_of_steps(small):
                seconds.append(each)
                show("measuring", len(seconds), STEPS)
        whole = run_seconds(recipe, small, seconds)
        yield f"time here, one process: {_duration(whole)}, {_duration(whole / config.steps)} a step"
        yield (
            f"  method: {STEPS} steps of a twin with channels / {small.divisor}, batch {small.recipe.train.batch}, "
            f"{small.operations / 1e9:.1f} GFLOP a step in {sorted(seconds)[STEPS // 2]:.2f} s, scaled by operations"
        )
    published = PUBLISHED.get(recipe.name)
    beside = ""
    if published and published.v100_days and recipe == get_recipe(recipe.name):
        of = f" for {published.steps:,} steps" if published.steps else ""
        beside = f" (the paper, Table 18: {published.v100_days:g}{of})"
    yield f"V100-days: {v100_days(recipe):.3g}{beside}"
    yield (
        f"  method: an A100 at {A100_SPEED / 1e12:.0f} TFLOP/s, {A100_SPEED / A100_PEAK:.0%} of its TF32 peak, times {V100_PER_A100} as in "
        "the paper; images encoded anew at each step, as the authors do"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((172_800, 86_400, "days"), (7_200, 3_600, "h"), (120, 60, "min")):
        if seconds >= limit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.2f} s"
