"""Classifier guidance: the distance of a model's images at each scale of a classifier's gradient, and what training the classifier cost.

The model is one of classes or an unconditional one; classes are drawn as often as the data has them. Images are those of the same seeds
at every scale, without classifier-free guidance; scale 0 is the model by itself. The distance is Fréchet's in EfficientNet-Lite0's
features, to the data's training part. Training time is that of the steps, by the speed in a run's metrics.jsonl: the model's own, or a
short run of its recipe on the same machine (`lw train scenes-class --data singles --first-stage models/scenes-ae --for 3m`).

    python benchmarks/classifier_guidance.py models/scenes-class runs/scenes-classifier --data singles --timed-by runs/scenes-class
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import save, table

from latentworks.checkpoints.resolve import resolve_model
from latentworks.data.sources import convert_depth
from latentworks.data.transforms import from_tensor
from latentworks.metrics.distances import frechet_distance, precision_recall
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.metrics.reference import Reference, reference_images
from latentworks.pipeline import Drawn, Pipeline, load
from latentworks.recipe import read_recipe
from latentworks.request import SampleRequest

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
ENOUGH, SHARE = 1.3, 0.15  # what must be reached: times better than scale 0, at most so much of the model's training time


def labels_of(reference: Reference, n: int, seed: int) -> list[str]:
    """Classes of the data's images drawn without replacement, over again when they are used up, sorted. Raises: ValueError without any."""
    entries, classes = reference.source.entries, reference.source.classes
    if not classes:
        raise ValueError("--data: the folder has no classes: give one whose sub-folders are the classifier's")
    order = np.random.default_rng(seed).permutation(len(entries))
    picked = [entries[order[i % len(order)]].label for i in range(n)]
    return sorted(classes[label] for label in picked if label is not None)


def drawn(pipeline: Pipeline, labels: list[str], request: SampleRequest) -> Iterator[np.ndarray]:
    """An image for each label; image i has seed ``request.seed + i`` at every scale."""
    done = 0
    while done < len(labels):
        same = [label for label in labels[done : done + request.batch] if label == labels[done]]
        for event in pipeline.draw(request.replace(label=labels[done], n=len(same), seed=request.seed + done)):
            if isinstance(event, Drawn):
                yield from convert_depth(event.pixels, np.dtype(np.uint8))
        done += len(same)


def training_seconds(model: Path, timed_by: Path) -> float:
    """Of all steps of a model, in one process, at the speed of a run of its recipe. Raises: ValueError where that run has no log."""
    log = timed_by / "metrics.jsonl"
    if not log.is_file():
        raise ValueError(f"{timed_by} is no run folder with a metrics.jsonl, from which the time of a step is read: see --timed-by")
    config, steps = read_recipe(timed_by / "recipe.json").train, read_recipe(resolve_model(model) / "recipe.json").train.steps
    seconds, before = 0.0, 0
    for row in map(json.loads, log.read_text().splitlines()):
        if "images_per_second" in row:
            seconds += (row["step"] - before) * config.batch * config.accumulate / row["images_per_second"]
            before = row["step"]
    return seconds / before * steps


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each scale."""
    pipeline, network = load(options.model), Lite0Features()
    reference = reference_images(options.data, read_recipe(resolve_model(options.model) / "recipe.json"), "train")
    parts = reference.dataset.batches(options.batch)
    real = collect(rows for part in parts for rows in extract(network, from_tensor(part["image"]), options.batch))
    labels, rows = labels_of(reference, options.n, options.seed), list[dict[str, Any]]()
    for scale in options.scales:
        request = SampleRequest.parse(
            {
                "classifier": str(options.classifier),
                "classifier_scale": scale,
                **{name: getattr(options, name) for name in ("guidance", "steps", "sampler", "seed", "batch")},
            }
        )
        images = collect(extract(network, drawn(pipeline, labels, request), options.batch))
        near = precision_recall(real, images)
        rows.append({"scale": scale, "distance": frechet_distance(real, images), "precision": near.precision, "recall": near.recall})
        print(f"scale {scale:g}: distance {rows[-1]['distance']:.2f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the diffusion model")
    parser.add_argument("classifier", type=Path, help="run folder of the classifier")
    parser.add_argument("--timed-by", type=Path, help="a run of the model's recipe that tells the time of a step (default: MODEL)")
    parser.add_argument("--data", type=Path, required=True, help="folder whose sub-folders are the classes")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="0 is always among them")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="classifier-free beside it: 0 draws without the class (default: 1, none)"
    )
    parser.add_argument("-n", type=int, default=1000, help="images at each scale (default: 1000)")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: 25)")
    parser.add_argument("--sampler", default="ddim", help="default: ddim")
    parser.add_argument("--seed", type=int, default=0, help="image i has seed SEED + i (default: 0)")
    parser.add_argument("--batch", type=int, default=50, help="images at once (default: 50)")
    options = parser.parse_args()
    options.scales = sorted({0.0, *options.scales})
    seconds = {
        "model": training_seconds(options.model, options.timed_by or options.model),
        "classifier": training_seconds(options.classifier, options.classifier),
    }
    share = seconds["classifier"] / seconds["model"]
    rows = measure(options)
    alone, best = rows[0]["distance"], min(rows, key=lambda row: row["distance"])
    columns = ["scale", "distance", "times better than scale 0", "precision", "recall"]
    cells = [
        [f"{row['scale']:g}", f"{row['distance']:.1f}", f"{alone / row['distance']:.2f}", f"{row['precision']:.3f}", f"{row['recall']:.3f}"]
        for row in rows
    ]
    print(table(columns, cells))
    better = alone / best["distance"]
    print(
        f"\nbest scale {best['scale']:g}, {better:.2f} times better than scale 0; at least {ENOUGH}: {'yes' if better >= ENOUGH else 'NO'}"
    )
    print(f"training: classifier {seconds['classifier']:.0f} s, model {seconds['model']:.0f} s, {share:.1%}; at most {SHARE:.0%}: ", end="")
    print("yes" if share <= SHARE else "NO")
    facts = {key: getattr(options, key) for key in ("guidance", "n", "steps", "sampler", "seed")}
    names = {"model": options.model.name, "classifier": options.classifier.name, "data": options.data.name}
    figures = {"times_better": better, "training_seconds": seconds, "training_share": share}
    name = "classifier_guidance" + ("" if options.guidance == 1 else f"_{options.guidance:g}")
    print("written to", save(name, rows, **names, **facts, **figures))


if __name__ == "__main__":
    main()
