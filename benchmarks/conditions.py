"""How far a trained model draws what it is asked for: boxes, a class, a label map or a caption of composed scenes.

Conditions are those of real scenes of seed 8001, which neither models nor judges are trained on: any pair of categories, so also those that
training never shows together, and the training part's photographs. Each image drawn is put before the judge (`judges.py`), at every
guidance scale asked for. Beside it stand what the judge says of the real scenes and of these through the model's first stage, which no
model can be expected to pass. The distance is Fréchet's in EfficientNet-Lite0's features, to real scenes of seed 8002.
Scales measured earlier, of the same weights in the same way, stay in the result.

    python benchmarks/conditions.py layout runs/layout --guidance 1 2 3 5
    python benchmarks/conditions.py layout            # of the real scenes alone; nothing is written
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from judges import Boxed, confusion, iou, scenes, singles
from judging import FOLDER, Judge, centres, parse, pixels, related, within
from record import RESULTS, save, table
from restoration import pipeline as sized

from latentworks.checkpoints.native import weights_hash
from latentworks.checkpoints.resolve import resolve_model
from latentworks.conditioners import LabelConditioner
from latentworks.conditions import droppable
from latentworks.data.scene_materials import Materials, materials
from latentworks.data.scene_words import CATEGORIES
from latentworks.data.scenes import never_together
from latentworks.data.transforms import from_tensor
from latentworks.metrics.distances import frechet_distance
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.pipeline import Drawn, Pipeline
from latentworks.request import SampleRequest
from latentworks.types import Batch, Box

ASKED, REFERENCE = 8001, 8002  # seeds
BATCH, SCALES = 50, (1.0, 2.0, 3.0, 5.0)

Images = Sequence[np.ndarray]
Figures = dict[str, float | None]


def boxes_of(scene: Boxed) -> list[Box]:
    """Boxes relative to the image, the largest first, as data gives them."""
    side = len(scene.image)
    boxes: list[Box] = [
        {"x": x0 / side, "y": y0 / side, "width": (x1 - x0) / side, "height": (y1 - y0) / side, "label": CATEGORIES[kind].name}
        for (x0, y0, x1, y1), kind in zip(scene.boxes, scene.kinds, strict=True)
    ]
    return sorted(boxes, key=lambda box: -box["width"] * box["height"])


def ask_layout(pipeline: Pipeline, asked: Sequence[Boxed]) -> Batch:
    return {"boxes": [boxes_of(scene) for scene in asked]}


def ask_class(pipeline: Pipeline, asked: Sequence[Boxed]) -> Batch:
    label = next((each for each in pipeline.model.conditioners if isinstance(each, LabelConditioner)), None)
    return {} if label is None else {"label": torch.tensor([label.index(CATEGORIES[scene.kinds[0]].name) for scene in asked])}


def ask_map(pipeline: Pipeline, asked: Sequence[Boxed]) -> Batch:
    return {"segmentation": torch.from_numpy(np.stack([scene.labels for scene in asked])).long()}


def ask_text(pipeline: Pipeline, asked: Sequence[Boxed]) -> Batch:
    return {"text": [scene.caption for scene in asked]}


def judge_layout(judge: Judge, images: Images, asked: Sequence[Boxed]) -> Figures:
    """The share of boxes in which their object is seen: all; those of scenes without a pair that training never shows; those of pairs."""
    known, new, every = list[bool](), list[bool](), list[bool]()
    for scene, labels in zip(asked, judge.label(images), strict=True):
        hits = [kind in within(labels, box) for box, kind in zip(scene.boxes, scene.kinds, strict=True)]
        strange = {kind for kind in scene.kinds if any(never_together(kind, other) for other in scene.kinds)}
        every += hits
        known += [] if strange else hits
        new += [hit for hit, kind in zip(hits, scene.kinds, strict=True) if kind in strange]
    return {"recognised": share(every), "familiar pairs": share(known), "new pairs": share(new), "boxes of new pairs": len(new)}


def judge_class(judge: Judge, images: Images, asked: Sequence[Boxed]) -> Figures:
    return {"right class": share([answer == scene.kinds[0] for answer, scene in zip(judge.classify(images), asked, strict=True)])}


def judge_map(judge: Judge, images: Images, asked: Sequence[Boxed]) -> Figures:
    counts = sum(confusion(scene.labels, labels) for scene, labels in zip(asked, judge.label(images), strict=True))
    return {"mIoU": iou(counts), "pixels right": float(np.diag(counts).sum() / counts.sum())}


def judge_text(judge: Judge, images: Images, asked: Sequence[Boxed]) -> Figures:
    """The share of kinds named that are present, of captions of which all are, and of true relations where both kinds are present.

    A relation holds when the centres of all pixels of either kind lie so: half of all images would pass by chance.
    """
    present, complete, relations = list[bool](), list[bool](), list[bool]()
    for scene, labels in zip(asked, judge.label(images), strict=True):
        said, places = parse(scene.caption), centres(labels)
        found = [kind in places for kind in said.kinds]
        present += found
        complete.append(all(found))
        if all(found[:2]):
            relations.append(related(said, places))
    return {"present": share(present), "all present": share(complete), "relation right": share(relations), "relations": len(relations)}


def share(hits: Sequence[bool]) -> float | None:
    """None where there was nothing to hit."""
    return float(np.mean(hits)) if hits else None


class Task(NamedTuple):
    """A kind of condition: what its model is called, how conditions are asked for and judged, and the sizes the judge knows."""

    field: str
    categories: int
    sizes: tuple[int, ...]
    ask: Callable[[Pipeline, Sequence[Boxed]], Batch]
    judge: Callable[[Judge, Images, Sequence[Boxed]], Figures]
    judged_by: tuple[str, ...]  # its figures in judge.json, {} being the size


TASKS = {
    "layout": Task("boxes", 24, (128,), ask_layout, judge_layout, ("boxes", "boxes_without", "boxes_empty")),
    "class": Task("label", 48, (64, 128), ask_class, judge_class, ("class_{}",)),
    "map": Task("segmentation", 48, (64, 128), ask_map, judge_map, ("miou_{}", "pixels_{}")),
    "text": Task("text", 48, (128,), ask_text, judge_text, ("present", "present_without", "relation")),
}


def real(task: str, parts: Materials, seed: int, n: int) -> list[Boxed]:
    """Real images of a task: scenes, or single objects."""
    return list((singles if task == "class" else scenes)(parts, seed, 0, n))


def drawn(pipeline: Pipeline, task: Task, asked: Sequence[Boxed], request: SampleRequest) -> Iterator[np.ndarray]:
    """An image for each condition; image i has seed ``request.seed + i``."""
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        batch: Batch = {"index": torch.arange(start, start + len(part)), **task.ask(pipeline, part)}
        for event in pipeline.draw_batch(batch, request.replace(seed=request.seed + start)):
            if isinstance(event, Drawn):
                yield from event.pixels
        print(f"guidance {request.guidance}: {start + len(part)} of {len(asked)} images", flush=True)


@torch.no_grad()
def reconstructed(pipeline: Pipeline, asked: Sequence[Boxed]) -> Iterator[np.ndarray]:
    """The real images through the first stage."""
    for start in range(0, len(asked), BATCH):
        x = pixels(np.stack([scene.image for scene in asked[start : start + BATCH]])).to(pipeline.device)
        yield from from_tensor(pipeline.model.first_stage(x).image.float().clamp(-1, 1))


class Bench:
    """A task, its conditions, and what images of it are measured by."""

    def __init__(self, task: str, judge: Judge, size: int, n: int, reference: int) -> None:
        self.task, self.judge = TASKS[task], judge
        if size not in self.task.sizes:
            raise ValueError(f"{task}: the model draws {size} pixels, but its judge knows {' or '.join(map(str, self.task.sizes))}")
        parts = materials(size, self.task.categories)["train"]._replace(split="held_out")  # the photographs trained on, and every pair
        self.asked = real(task, parts, ASKED, n)
        self.network = Lite0Features()
        self.reference = self.features([scene.image for scene in real(task, parts, REFERENCE, reference)])

    def features(self, images: Images) -> np.ndarray:
        return collect(extract(self.network, images, BATCH))

    def row(self, name: str, images: Images) -> dict[str, Any]:
        distance = frechet_distance(self.reference, self.features(images))
        return {"images": name, **self.task.judge(self.judge, images, self.asked), "distance": distance}


def accuracy_of(task: Task, size: int) -> Figures:
    """What is to be printed beside the figures of a task: how often its judge is right on real held-out images."""
    figures = json.loads((FOLDER / "judge.json").read_text())
    return {name: figures[name] for name in (name.format(size) for name in task.judged_by)}


def check(task: str, pipeline: Pipeline) -> None:
    """Raises: ValueError for a model of another task."""
    takes = sorted(str(conditioner.field) for conditioner in pipeline.model.conditioners)
    if takes != [TASKS[task].field]:
        raise ValueError(f"{task}: needs a model that takes {TASKS[task].field} alone, this one takes {', '.join(takes) or 'no condition'}")


def measure(bench: Bench, pipeline: Pipeline | None, request: SampleRequest, scales: Sequence[float]) -> Iterator[dict[str, Any]]:
    """A row for the real images, one for them through the first stage, and one for each guidance scale."""
    yield bench.row("real", [scene.image for scene in bench.asked])
    if pipeline is not None:
        yield bench.row("through the first stage", list(reconstructed(pipeline, bench.asked)))
        for scale in scales:
            images = list(drawn(pipeline, bench.task, bench.asked, request.replace(guidance=scale)))
            yield bench.row(f"drawn, guidance {scale:g}", images)


def fingerprint(model: str) -> str:
    """Which weights these are."""
    return weights_hash(resolve_model(model))[:16]


def earlier(task: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the result that is there, if it is of the same weights, measured in the same way: other scales are added to them."""
    path = RESULTS / f"conditions_{task}.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    rows: list[dict[str, Any]] = result.get("rows", [])
    return rows if all(result.get(name) == value for name, value in facts.items()) else []


def order(row: dict[str, Any]) -> tuple[bool, float]:
    """Real images first, then by guidance."""
    return row["images"].startswith("drawn"), float(row["images"].rpartition(" ")[2]) if row["images"].startswith("drawn") else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS, help="what the model is conditioned on")
    parser.add_argument("model", nargs="?", help="a model or run folder (default: none, only real images)")
    parser.add_argument("-n", type=int, default=1000, help="images for each guidance scale (default: 1000)")
    parser.add_argument("--reference", type=int, default=2000, help="real images the distance is taken to (default: 2000)")
    parser.add_argument("--guidance", type=float, nargs="+", help="scales (default: 1 2 3 5, or 1 for a model that needs its condition)")
    parser.add_argument("--steps", type=int, default=25, help="of sampling (default: 25)")
    parser.add_argument("--size", type=int, help="pixels a side, larger ones convolutionally (default: what the model was trained on)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image drawn (default: 0)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    options = parser.parse_args()
    task, pipeline = TASKS[options.task], None if options.model is None else sized(options.model, options.size, options.precision)
    if pipeline is not None:
        check(options.task, pipeline)
    size = task.sizes[-1] if pipeline is None else pipeline.size
    bench, request = Bench(options.task, Judge(), size, options.n, options.reference), SampleRequest(steps=options.steps, seed=options.seed)
    accuracy, scales = accuracy_of(task, size), options.guidance or SCALES
    if pipeline is not None and not options.guidance and not any(map(droppable, pipeline.model.conditioners)):
        scales = [1.0]
    seeds = {"conditions": ASKED, "reference": REFERENCE, "drawing": options.seed}
    facts = {name: getattr(options, name) for name in ("n", "reference", "steps", "precision")} | {
        "size": size,
        "seeds": seeds,
        "judge": accuracy,
    }
    if pipeline is not None:
        facts |= {"model": Path(options.model).name, "weights": fingerprint(options.model)}
    rows = [] if pipeline is None else earlier(options.task, facts)
    for row in measure(bench, pipeline, request, scales):
        rows = sorted([other for other in rows if other["images"] != row["images"]] + [row], key=order)
        if pipeline is not None:  # after every scale, as each takes long
            path = save(f"conditions_{options.task}", rows, **facts)
    columns = list(rows[0])
    print(table(columns, [[f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns] for row in rows]))
    print(f"\nthe judge is right on real held-out images: {', '.join(f'{name} {value:.4f}' for name, value in accuracy.items())}")
    if pipeline is not None:
        print("written to", path)


if __name__ == "__main__":
    main()
