"""Whether `lw audit` finds copies: of a model overfitted on few images, of images that a model saw often, and none among real images.

Models of latents are trained with the bundled first stage, without conditions. `overfitted`: twice `--steps`, on 50 emoji; all its samples
should be copies. `repeated`: `--steps`, on 2,000 files, half of them 20 emoji repeated 50 times, half of them others. What is a copy of the
20 there is said by another measure than the audit's: the root mean square difference to one of them is at most half of that to every other
training image. `real`: nothing is trained; how many held-out emoji are taken for copies of the training images, by a rule of others of
them, and how many training images that went through the first stage, with a little noise on the latents, are found. Parts that are not
asked for keep their row of an earlier call, if it was measured alike.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from record import RESULTS, save, table

from latentworks.data.listing import Entry, list_folder
from latentworks.data.transforms import from_tensor
from latentworks.first_stage import FirstStage
from latentworks.metrics.audit import Audited, Sample, audit, drawn
from latentworks.metrics.copying import Audit
from latentworks.metrics.features import Lite0Features
from latentworks.metrics.measurement import Progress
from latentworks.metrics.reference import Reference, reference_images
from latentworks.pipeline import load, load_model
from latentworks.random import randn_like_per_image
from latentworks.recipes import get_recipe
from latentworks.request import SampleRequest
from latentworks.runs import Message, RunRequest, train_run

FIRST_STAGE = "openmoji-64"
RECIPE = "unconditional-64"
FEW, TIMES, FILES = 20, 50, 2000  # images that are repeated, how often, and files in all
TRAINING = ["train.optimiser=muon", "train.lr=2e-3", "intervals.evaluate=1000000", "intervals.checkpoint=1000000"]
OVERFITTED, NOISE = 50, 0.1
PARTS = ("overfitted", "repeated", "real")


def folder(path: Path, data: Path, entries: list[tuple[Entry, int]]) -> Path:
    """A data set of these images, each so many times, with the held-out ones of ``data``."""
    path.mkdir()
    rows = []
    for entry, times in [*entries, *((entry, 1) for entry in list_folder(data).entries if entry.split == "held_out")]:
        for time in range(times):
            name = f"{Path(entry.name).stem}-{time}.png"
            shutil.copy(data / entry.name, path / name)
            rows.append({"file_name": name, "split": entry.split})
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen(data: Path, count: int, seed: int) -> list[Entry]:
    """So many training images, by chance."""
    entries = [entry for entry in list_folder(data).entries if entry.split == "train"]
    return [entries[i] for i in np.random.default_rng(seed).choice(len(entries), count, replace=False)]


def trained(path: Path, steps: int) -> Path:
    """The run folder of a model of a data set, beside it."""
    recipe = get_recipe(RECIPE, [*TRAINING, f"train.steps={steps}"])
    out = path.with_name(f"{path.name}-run")
    for event in train_run(RunRequest(recipe=recipe, data=path, out=out, first_stage=FIRST_STAGE)):
        print(event.text if isinstance(event, Message) else event.line(), flush=True)
    return out


def parts(path: Path) -> tuple[Reference, Reference]:
    """The training and the held-out images of a data set."""
    recipe = get_recipe(RECIPE)
    return reference_images(path, recipe, "train"), reference_images(path, recipe, "held_out")


def audited(samples: Iterator[Sample], n: int, training: Reference, held_out: Reference, through: FirstStage) -> Audit:
    """The audit of samples from this first stage, with its progress printed."""
    said = ""
    for event in audit(samples, n, training, Lite0Features(), held_out=held_out, through=through):
        if isinstance(event, Audited):
            return event.audit
        if isinstance(event, Progress) and event.what != said:
            said = event.what
            print(f"{said}: {event.total}", flush=True)
    raise AssertionError("an audit ends with its result")


def overfitted(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All samples of a model of few images are copies."""
    path = folder(work / "overfitted", options.data, [(entry, 1) for entry in chosen(options.data, OVERFITTED, options.seed)])
    training, held_out = parts(path)
    pipeline = load(trained(path, 2 * options.steps))
    samples = drawn(pipeline, training, SampleRequest(n=options.n, seed=options.seed))
    found = audited(samples, options.n, training, held_out, pipeline.model.first_stage)
    return {
        "part": "overfitted",
        "what": f"samples of a model of {OVERFITTED} images found",
        "share": found.copies / options.n,
        **found.summary(),
    }


def repeated(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Copies of the images that a model saw often."""
    entries = chosen(options.data, FEW + FILES - FEW * TIMES, options.seed)
    path = folder(work / "repeated", options.data, [(entry, TIMES if i < FEW else 1) for i, entry in enumerate(entries)])
    training, held_out = parts(path)
    pipeline = load(trained(path, options.steps))
    samples = list(drawn(pipeline, training, SampleRequest(n=options.n, seed=options.seed)))
    found = audited(iter(samples), options.n, training, held_out, pipeline.model.first_stage)
    names = {f"{Path(entry.name).stem}-0.png" for entry in entries[:FEW]}
    copies = of_the_few(samples, training, names)
    hit = sum(verdict.copy for verdict in found.verdicts if verdict.name in copies)
    named = sum(verdict.copy and verdict.original in names for verdict in found.verdicts if verdict.name in copies)
    what = f"{len(copies)} copies of {FEW} images repeated {TIMES} times among {FILES:,} found"
    return {**found.summary(), "part": "repeated", "what": what, "share": hit / max(len(copies), 1), "true": len(copies), "named": named}


def of_the_few(samples: list[Sample], training: Reference, names: set[str]) -> set[str]:
    """The samples whose difference to one of the named images is at most half of that to every other one."""
    images, found = [], set()
    for batch in training.dataset.batches(64):
        images.append(from_tensor(batch["image"]))
    every, few = np.concatenate(images), np.array([_first(entry.name) in names for entry in training.source.entries])
    _, kept = np.unique([_first(entry.name) for entry in training.source.entries], return_index=True)
    every, few = every[kept].astype(np.float32), few[kept]
    for name, image in samples:
        apart = np.square(every - image.astype(np.float32)).mean(axis=(1, 2, 3))
        if apart[few].min() <= apart[~few].min() / 4:
            found.add(name)
    return found


def _first(name: str) -> str:
    """The first of the files of an image."""
    return name.rpartition("-")[0] + "-0.png"


def real(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Held-out images, and training images through the first stage."""
    training, held_out = parts(options.data)
    count = min(options.n, len(training.source))
    picked = np.random.default_rng(options.seed).choice(len(training.source), count, replace=False).tolist()
    first_stage = load_model(FIRST_STAGE).first_stage.eval()
    found = audited(rebuilt(first_stage, training, picked), count, training, held_out, first_stage)
    what = f"{found.real} real images taken for copies"
    return {**found.summary(), "part": "real", "what": what, "share": found.false_alarms / found.real, "rebuilt": found.copies / count}


@torch.no_grad()
def rebuilt(first_stage: FirstStage, training: Reference, picked: list[int]) -> Iterator[Sample]:
    """Training images from their latents with a little noise."""
    for index in picked:
        x = training.dataset.batch([index])["image"]
        z = first_stage.to_latent(first_stage.encode_raw(x))
        z = z + NOISE * randn_like_per_image("rebuilt", [index])(z)
        yield training.source.entries[index].name, from_tensor(first_stage.decode(z))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder `lw data openmoji` wrote")
    parser.add_argument("--steps", type=int, default=1500, help="of training (default: 1500)")
    parser.add_argument("--n", type=int, default=200, help="samples of each part")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the samples (default: 0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    run = {"overfitted": overfitted, "repeated": repeated, "real": real}
    with TemporaryDirectory() as work:
        found = {part: run[part](options, Path(work)) for part in options.parts}
    alike = {"steps": options.steps, "n": options.n, "seed": options.seed, "first_stage": FIRST_STAGE, "recipe": RECIPE}
    name = f"audit_{options.seed}" if options.seed else "audit"
    earlier = json.loads(path.read_text()) if (path := RESULTS / f"{name}.json").is_file() else {}
    kept = {row["part"]: row for row in earlier["rows"]} if alike.items() <= earlier.items() else {}
    rows = [(kept | found)[part] for part in PARTS if part in kept | found]
    print(table(("", "share", "verdict"), [(row["what"], f"{row['share']:.1%}", row["verdict"]) for row in rows]))
    print("written to", save(name, rows, **alike))


if __name__ == "__main__":
    main()
