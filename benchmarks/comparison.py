"""One change at a time, each trained as long: what it does to distance, to captions and to speed.

A variant is `openmoji-64` with a few settings (`VARIANTS`), trained from random weights for `--minutes` with a constant learning rate, and
judged by its averaged weights. Where it says no other, it has the text transformer of the first bundled model (`BASE`); the recipe has
since taken what was best. First stages that are compared are trained first, each with as many steps; the other variants share the
bundled one. Then 500 captions of training emoji are drawn with guidance 3 in 20 steps. Figures: the distance between these pictures and
all captioned training images; how often the emoji named is nearest, or among the five nearest (`captions.py`; captions without a skin tone
alone); pictures a second while drawing; steps taken. Rows of an earlier call, measured alike, stay in the result. Variants that are in
`--runs` already are measured, not trained again.

A decoder that learned on noisier latents draws better what a net of half an hour makes, so only rows of one decoder compare. `--decoder`
draws through that of another model; its folder's name stands in the row. "own" are rows of variants with a first stage of their own.

Half an hour is as many steps as the machine has time for. Where another one goes on with rows that are there, `--steps` trains a variant
whose steps cost as much as the base's for as many as the base's row has (1,438).

    python benchmarks/comparison.py base eps min-snr --data openmoji --runs runs/comparison
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from captions import Asked, Gallery, drawn, named
from PIL import Image
from record import RESULTS, machine, save, table
from restoration import pipeline

from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.evaluate import evaluate_first_stage
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.metrics.measurement import Evaluation
from latentworks.metrics.reference import reference_images
from latentworks.pipeline import Pipeline
from latentworks.preparation import load_first_stage
from latentworks.recipe import Recipe
from latentworks.recipes import get_recipe
from latentworks.request import SampleRequest
from latentworks.runs import Progress, RunRequest, train_run

SEED, GUIDANCE, STEPS = 0, 3.0, 20
SIZES = "width: 256, heads: 4, length: 24, vocabulary: 2048, dropout: 0.1"
TEXT = f"conditioners=[{{{{kind: text, {SIZES}, layers: {{}}, neighbours: {{}}, vector: {{}}}}}}]"
BASE = ("train.steps=1000000", "train.decay=constant", TEXT.format(4, 0, 0))
WORDS = TEXT.format(2, 2, 256).replace("}]", ", word_dropout: 0.5, word_shuffle: 0.3}]")
"""The row that is there was trained when each word was left out with probability 0.2; now half of the captions are cut to some words."""
F8 = ("unet.channels=128", "unet.multipliers=[1,2]", "unet.attention=[2]")
"""A net for latents of 8 x 8, about as fast as the recipe's is on 16 x 16."""


class Variant(NamedTuple):
    """``settings`` of the diffusion model, and of the first stage where it has one of its own, from which recipe."""

    settings: tuple[str, ...] = ()
    stage: tuple[str, ...] | None = None
    stage_recipe: str = "openmoji-64-ae"


VARIANTS = {
    "base": Variant(),
    "base, seed 1": Variant(("train.seed=1",)),
    "text, 2 layers": Variant((TEXT.format(2, 0, 0),)),
    "text, 2 layers and neighbours": Variant((TEXT.format(2, 2, 0),)),
    "text, 2 layers, neighbours and vector": Variant((TEXT.format(2, 2, 256),)),
    "text, 2 layers, neighbours and vector, changed words": Variant((WORDS,)),
    "eps": Variant(("process.prediction=eps",)),
    "x0": Variant(("process.prediction=x0",)),
    "x0, seed 1": Variant(("process.prediction=x0", "train.seed=1")),
    "min-SNR 5": Variant(("objective.min_snr=5",)),
    "min-SNR 5, seed 1": Variant(("objective.min_snr=5", "train.seed=1")),
    "zero terminal SNR": Variant(("process.zero_terminal_snr=true",)),
    "zero terminal SNR, seed 1": Variant(("process.zero_terminal_snr=true", "train.seed=1")),
    "narrow, 48 channels": Variant(("unet.channels=48", "unet.head_channels=24")),
    "wide, 96 channels": Variant(("unet.channels=96",)),
    "AdamW": Variant(("train.optimiser=adamw", "train.lr=5e-4")),
    "flips": Variant(("data.flip=true", "variants=2")),
    "flips, seed 1": Variant(("data.flip=true", "variants=2", "train.seed=1")),
    "KL, f = 4, 4 channels": Variant((), ()),
    "KL, f = 4, 4 channels, seed 1": Variant(("train.seed=1",), ("train.seed=1",)),
    "KL, f = 4, 8 channels": Variant((), ("first_stage.latent_channels=8",)),
    "KL, f = 8, 4 channels": Variant(F8, ("first_stage.multipliers=[1,2,2,2]",)),
    "KL, f = 8, 16 channels": Variant(F8, ("first_stage.multipliers=[1,2,2,2]", "first_stage.latent_channels=16")),
    "VQ, f = 4, 4 channels": Variant((), (), "openmoji-64-ae-vq"),
    "VQ, f = 4, 4 channels, seed 1": Variant(("train.seed=1",), ("train.seed=1",), "openmoji-64-ae-vq"),
    "KL, f = 4, equivariant": Variant((), ("objective.equivariance=0.5",)),
}


def trained(recipe: Recipe, options: argparse.Namespace, out: Path, seconds: float | None = None, stage: str | None = None) -> Path:
    """The run of a recipe, which is trained unless that is done; one that counts steps and was interrupted goes on."""
    last = out / "last.json"
    if not last.is_file() or (seconds is None and json.loads(last.read_text())["step"] < recipe.train.steps):
        for event in train_run(RunRequest(recipe, options.data, out, stage, seconds=seconds)):
            print(event.line() if isinstance(event, Progress) else event.text, flush=True)
    return out


def stage_of(name: str, variant: Variant, options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """The first stage of a variant, and its figures on held-out images if it is its own."""
    if variant.stage is None:
        return "openmoji-64", {}
    recipe = get_recipe(variant.stage_recipe, [f"train.steps={options.stage_steps}", *variant.stage])
    stage = str(trained(recipe, options, options.runs / f"{folder_of(name)}-ae"))
    *_, last = evaluate_first_stage(load_first_stage(stage), reference_images(options.data, recipe, "held_out"), Lite0Features())
    assert isinstance(last, Evaluation)
    return stage, {
        figure.name: round(float(figure.value), 3) for figure in last.measurements if figure.name.startswith(("PSNR of", "Fréchet"))
    }


def folder_of(name: str) -> str:
    """A variant's name as that of a folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


class Judge:
    """The captions that every variant draws, and what its pictures are measured by."""

    def __init__(self, data: Path, n: int) -> None:
        self.gallery = Gallery(data)
        rows = [row for row in self.gallery.rows if row["text"] and row["split"] == "train"]
        chosen = [rows[i] for i in sorted(np.random.default_rng(SEED).permutation(len(rows))[:n])]
        self.asked = [Asked(row["text"], self.gallery.place[row["group"]]) for row in chosen]
        self.plain = [not row["tone"] for row in chosen]
        pictures = (np.asarray(Image.open(data / row["file_name"]).convert("RGB")) for row in rows)
        self.real = collect(extract(self.gallery.network, pictures))

    def figures(self, images: Sequence[np.ndarray]) -> dict[str, float]:
        """Of one image a caption."""
        distance = frechet_distance(self.real, collect(extract(self.gallery.network, images)))
        plain = [(one, image) for one, image, plain in zip(self.asked, images, self.plain, strict=True) if plain]
        right = named([one for one, _ in plain], self.gallery.nearest([image for _, image in plain]))
        return {"distance": round(distance, 2), **{key: round(share, 4) for key, share in right.items()}}

    def drawn(self, pipe: Pipeline, request: SampleRequest) -> dict[str, float]:
        """Of what a model draws, and how fast it draws."""
        began = time.perf_counter()
        images = drawn(pipe, self.asked, request)
        speed = len(images) / (time.perf_counter() - began)
        return {**self.figures(images), "images/s": round(speed, 2)}


def measured(names: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each variant."""
    judge = Judge(options.data, options.n)
    for name in names:
        variant = VARIANTS[name]
        stage, stage_figures = stage_of(name, variant, options)
        recipe = get_recipe("openmoji-64", [*BASE, *variant.settings, *([f"train.steps={options.steps}"] if options.steps else [])])
        seconds = None if options.steps else 60 * options.minutes
        run = trained(recipe, options, options.runs / folder_of(name), seconds, stage)
        pipe = pipeline(str(run / "model"), precision=options.precision)
        if options.decoder is not None:
            pipe.model.first_stage.take_decoder(load_first_stage(str(options.decoder)))
        request = SampleRequest(guidance=GUIDANCE, sampler=pipe.defaults.sampler, steps=STEPS, seed=SEED, batch=32)
        steps = json.loads((run / "last.json").read_text())["step"]
        drawn_on = f"{machine()['cpu']}, {options.precision}"
        decoder = "own" if variant.stage is not None else "openmoji-64" if options.decoder is None else options.decoder.name
        yield {"variant": name, "decoder": decoder, "steps": steps, **judge.drawn(pipe, request), "drawn on": drawn_on, **stage_figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--data", type=Path, required=True, help="what `lw data openmoji` wrote")
    parser.add_argument("--runs", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training a variant (default: 30)")
    parser.add_argument("--steps", type=int, help="of training a variant, instead of the minutes")
    parser.add_argument("--stage-steps", type=int, default=3000, help="of training a first stage (default: 3000)")
    parser.add_argument(
        "--decoder", type=Path, help="a model with the bundled encoder, through whose decoder to draw (default: the bundled one)"
    )
    parser.add_argument("-n", type=int, default=500, help="captions (default: 500)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    options = parser.parse_args()
    facts = {"minutes": options.minutes, "stage_steps": options.stage_steps, "n": options.n, "guidance": GUIDANCE, "sampling_steps": STEPS}
    path, rows = RESULTS / "comparison.json", []
    for row in measured(options.variants, options):
        result = json.loads(path.read_text()) if path.is_file() else {}
        kept = result.get("rows", []) if all(result.get(name) == value for name, value in facts.items()) else []
        rows = [other for other in kept if (other["variant"], other["decoder"]) != (row["variant"], row["decoder"])] + [row]
        save("comparison", rows, **facts)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(table(columns, [[str(row.get(column, "")) for column in columns] for row in rows]))
    print("\nwritten to", path)


if __name__ == "__main__":
    main()
