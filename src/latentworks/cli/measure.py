"""`lw evaluate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latentworks.data.listing import Split
    from latentworks.metrics.features import FeatureNetwork
    from latentworks.metrics.measurement import Evaluation, Progress

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model's name, a model folder or a run folder.")],
    data: Annotated[Path, typer.Option(help="Folder of images to compare with.")],
    n: Annotated[int, typer.Option("-n", help="Images to draw; a first stage draws none.")] = 1000,
    split: Annotated[str | None, typer.Option(help="train, held_out or all. Default: held_out for a first stage, else train.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim, plms, dpmpp_2m or unipc. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Image i is drawn with seed + i; also the seed of captions and random subsets.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at once; changes speed and memory, not the figures.")] = 16,
    network: Annotated[str, typer.Option(help="lite0, or the path of torch-fidelity's Inception weights.")] = "lite0",
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for a 95 % interval of the Fréchet distance, e.g. 100.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write all figures to this file.")] = None,
) -> None:
    """Measure a model: how far its images are from real ones, and what its first stage loses.

    Example: lw evaluate runs/openmoji-64 --data openmoji -n 1000
    """
    from latentworks.cli.terminal import progress_bar
    from latentworks.metrics.measurement import Evaluation

    drawing = {"n": n, "sampler": sampler, "steps": steps, "guidance": guidance, "seed": seed, "batch": batch}
    name, events = _begin(model, data, split, network, drawing, bootstrap)
    with progress_bar() as show:
        for event in events:
            if isinstance(event, Evaluation):
                evaluation = event
            else:
                show(*event)
    for measurement in evaluation.measurements:
        typer.echo(str(measurement))
    for note in evaluation.notes:
        typer.echo(f"note: {note}")
    if json is not None:
        _write({"model": name, **evaluation.as_json()}, json)


def _begin(
    model: str, data: Path, split: str | None, network: str, drawing: dict[str, Any], bootstrap: int
) -> "tuple[str, Iterator[Progress | Evaluation]]":
    """The model's name and the evaluation that fits its kind."""
    from latentworks.checkpoints.native import load_folder
    from latentworks.checkpoints.resolve import resolve_model
    from latentworks.config import nearest
    from latentworks.metrics.evaluate import evaluate_first_stage, evaluate_model
    from latentworks.metrics.reference import reference_images
    from latentworks.model import LatentDiffusion
    from latentworks.pipeline import Pipeline
    from latentworks.recipe import DiffusionRecipe
    from latentworks.request import SampleRequest

    request = SampleRequest.parse(drawing)
    splits: dict[str, Split | None] = {"train": "train", "held_out": "held_out", "all": None}
    if split is not None and split not in splits:
        raise ValueError(f"--split {split!r}: {nearest(split, list(splits))}")
    loaded, recipe = load_folder(resolve_model(model))
    if isinstance(loaded, LatentDiffusion):
        assert isinstance(recipe, DiffusionRecipe)
        reference = reference_images(data, recipe, splits[split or "train"])
        floor = reference.source.split == "train" and reference.source.counts["held_out"] > 0
        held_out = reference_images(data, recipe, "held_out") if floor else None
        pipeline = Pipeline(loaded, recipe.sampling, recipe.data.out_size, depth=recipe.data.depth)
        return recipe.name, evaluate_model(pipeline, reference, _network(network), request, held_out=held_out, resamples=bootstrap)
    reference = reference_images(data, recipe, splits[split or "held_out"])
    return recipe.name, evaluate_first_stage(loaded, reference, _network(network), batch=request.batch)


def _network(name: str) -> "FeatureNetwork":
    from latentworks.metrics.features import Lite0Features, inception

    return Lite0Features() if name == "lite0" else inception(Path(name))


def _write(values: dict[str, Any], path: Path) -> None:
    from json import dumps

    from latentworks.staging import staged_file

    with staged_file(path) as file:
        file.write_text(dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
