"""Peak memory and images/s of what the shipped recipes do: training both stages, sampling, encoding and decoding, in float32 and bf16.

Weights and data are random, which changes neither figure. Every row runs in a process of its own, and its memory is the highest resident
size of that process: Python, PyTorch and the imports (the first row), weights, optimiser, average, activations. A training step is the
whole step of `latentworks.train.train`, images already read; a sample is a finished picture with the recipe's sampler, steps, guidance.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from record import save, table

from latentworks.conditioners import build_conditioner, train_tokenizer
from latentworks.costs.time import Constant
from latentworks.engine import Engine, keep_memory
from latentworks.first_stage import FirstStage, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.objectives.base import Objective
from latentworks.pipeline import Drawn, Pipeline, SampleRequest
from latentworks.recipe import DiffusionRecipe, FirstStageRecipe, build_diffusion, build_objective
from latentworks.recipes import RECIPES
from latentworks.train import TrainConfig, make_accelerator, train
from latentworks.types import Batch

Precision = Literal["float32", "bf16"]
Work = Callable[[], object]
WARM_UP, REPEATS, SECONDS = 2, 9, 6.0  # a row is repeated so often, or for so long
CAPTIONS = ["a red apple on a table", "smiling face with sunglasses", "flag of a country", "woman running, medium skin tone"] * 4


class Task(NamedTuple):
    """A row: ``build`` sets everything up for a precision and returns what is timed, which handles ``batch`` images a call."""

    what: str
    batch: int
    build: Callable[[Precision], Work]


def first_stage_recipe() -> FirstStageRecipe:
    recipe = RECIPES["openmoji-64-ae"]()
    assert isinstance(recipe, FirstStageRecipe)
    return recipe


def latent_recipe() -> DiffusionRecipe:
    recipe = RECIPES["openmoji-64"]()
    assert isinstance(recipe, DiffusionRecipe)
    return recipe


def new_first_stage() -> FirstStage:
    first_stage = build_first_stage(first_stage_recipe().first_stage)
    first_stage.set_statistics(torch.zeros(first_stage.channels), torch.ones(()))
    return first_stage


def new_model() -> LatentDiffusion:
    recipe = latent_recipe()
    tokenizer = train_tokenizer(CAPTIONS, recipe.conditioners[0].vocabulary).to_str()
    return build_diffusion(recipe, new_first_stage(), [build_conditioner(recipe.conditioners[0], {"tokenizer.json": tokenizer})])


def random_images(batch: int, side: int) -> torch.Tensor:
    return torch.rand(batch, new_first_stage().in_channels, side, side) * 2 - 1


def training(objective: Objective, batch: Batch, config: TrainConfig, precision: Precision) -> Work:
    config = config.replace(precision=precision)
    return partial(next, train(objective, Constant(batch), config, accelerator=make_accelerator(config)))


def train_first_stage(precision: Precision, discriminator: bool) -> Work:
    recipe = first_stage_recipe()
    if discriminator:  # from the first step on, instead of half-way
        recipe = recipe.replace(objective=recipe.objective.replace(discriminator_start=0.0).model_dump())
    batch: Batch = {"index": torch.arange(recipe.train.batch), "image": random_images(recipe.train.batch, recipe.data.out_size)}
    return training(build_objective(recipe, build_first_stage(recipe.first_stage)), batch, recipe.train, precision)


def train_latent(precision: Precision) -> Work:
    recipe, model, n = latent_recipe(), new_model(), latent_recipe().train.batch
    with torch.no_grad():
        raw = model.first_stage.encode_raw(random_images(n, recipe.data.out_size))  # as the latent cache gives it
    batch: Batch = {"index": torch.arange(n), "raw": raw, "text": [CAPTIONS[i % len(CAPTIONS)] for i in range(n)]}
    return training(build_objective(recipe, model), batch, recipe.train, precision)


def sample(precision: Precision, n: int) -> Work:
    recipe = latent_recipe()
    pipe = Pipeline(new_model(), recipe.sampling, recipe.data.out_size, Engine(precision=precision))
    request = SampleRequest(prompt=CAPTIONS[0], n=n, batch=n)
    return lambda: [event for event in pipe.draw(request) if isinstance(event, Drawn)]


def encode_decode(precision: Precision, n: int, side: int = 64, kept: bool = True) -> Work:
    first_stage, images, engine = new_first_stage().eval(), random_images(n, side), Engine(precision=precision)
    if kept:
        keep_memory(engine.resolve())

    @torch.no_grad()
    def there_and_back() -> object:
        with engine.autocast():
            return first_stage.decode(first_stage.to_latent(first_stage.encode_raw(images)))

    return there_and_back


AE_BATCH, LATENT_BATCH = first_stage_recipe().train.batch, latent_recipe().train.batch
TASKS = (
    Task("imports alone", 0, lambda precision: lambda: None),
    Task("train openmoji-64-ae, before the discriminator", AE_BATCH, partial(train_first_stage, discriminator=False)),
    Task("train openmoji-64-ae, with the discriminator", AE_BATCH, partial(train_first_stage, discriminator=True)),
    Task("train openmoji-64", LATENT_BATCH, train_latent),
    Task("sample openmoji-64", 1, partial(sample, n=1)),
    Task("sample openmoji-64", 16, partial(sample, n=16)),
    Task("encode and decode, 64 px", 1, partial(encode_decode, n=1)),
    Task("encode and decode, 64 px", 16, partial(encode_decode, n=16)),
    Task("encode and decode, 512 px", 1, partial(encode_decode, n=1, side=512)),
    Task("encode and decode, 512 px, memory given back each time", 1, partial(encode_decode, n=1, side=512, kept=False)),
)


def run(task: Task, precision: Precision) -> dict[str, object]:
    """Measure a row in this process: images/s of every repeat, peak resident memory in MB (10^6 bytes)."""
    torch.manual_seed(0)
    work = task.build(precision)
    for _ in range(WARM_UP):
        work()
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    speeds = [round(task.batch / each, 2) for each in seconds] if task.batch else []
    return {"what": task.what, "batch": task.batch, "precision": precision, "peak_mb": round(peak), "images_per_second": speeds}


def run_apart(row: int, precision: Precision) -> dict[str, object]:
    """The same in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--row", str(row), precision], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=2, metavar=("N", "PRECISION"), help="measure row N (from 0) in this process, print it as JSON")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(run(TASKS[int(options.row[0])], options.row[1])))
        return
    wanted: list[tuple[int, Precision]] = [(0, "float32")]
    wanted += [(row, precision) for row in range(1, len(TASKS)) for precision in ("float32", "bf16")]
    rows = [run_apart(row, precision) for row, precision in wanted]
    lines = []
    for row in rows:
        speeds = row["images_per_second"]
        speed = f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})" if speeds else ""
        lines.append([row["what"], str(row["batch"] or ""), row["precision"] if speeds else "", f"{row['peak_mb']:,} MB", speed])
    print(table(["", "batch", "precision", "peak memory", "images/s: median (range)"], lines))
    print("\nwritten to", save("memory", rows))


if __name__ == "__main__":
    main()
