"""How often a model of emoji draws what a caption says: what is drawn is given the name of the real emoji nearest to it.

The gallery is one picture of every emoji, pictures of equal pixels once. Nearest is by the cosine of EfficientNet-Lite0's features after
subtraction of the gallery's mean. Three kinds of captions (`lw data openmoji`):

- "known": training captions without a skin tone: the share for which the emoji itself is nearest, or among the five nearest;
- "tones": people in a skin tone in which training never shows them: the share whose nearest emoji is this person, in this tone, both.
  Beside it what the image of the training caption nearest to this one would give (most words in common, then the shortest). As these
  features see little of colour, also of people in one tone the share for which most pixels of skin are in that colour;
- "unused": other names of training emoji that training does not read.

And what no model in this latent space can well pass: the emoji themselves, encoded and decoded. Where a model's text is aligned with its
latents, also which emoji that text itself takes a caption for: what is understood, be it drawn or not.

    python benchmarks/captions.py openmoji-64 --data openmoji --guidance 3 5
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from record import save, table
from restoration import BATCH, pipeline, reconstructed

from latentworks.conditioners import TextConditioner
from latentworks.conditioners.text import aligned_texts
from latentworks.metrics.features import Lite0Features, collect, extract
from latentworks.pipeline import Drawn, Pipeline
from latentworks.request import SampleRequest

TOP = 5
SKIN = np.array([[0xFA, 0xDC, 0xBC], [0xE0, 0xBB, 0x95], [0xBF, 0x8F, 0x68], [0x9B, 0x64, 0x3D], [0x59, 0x45, 0x39]], float)
TONES = [f"{tone} skin tone" for tone in ("light", "medium-light", "medium", "medium-dark", "dark")]
"""OpenMoji's colours of skin, and what they are called."""
NEAR = 25.0
"""From a pixel to a colour of skin, in levels of 255."""


class Asked(NamedTuple):
    """A caption, and the place in the gallery of the emoji that it names."""

    text: str
    place: int


class Gallery:
    """One row of metadata.jsonl for each picture, and its features."""

    def __init__(self, data: Path) -> None:
        lines = (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows: list[dict[str, Any]] = list(map(json.loads, lines))
        self.place: dict[str, int] = {}
        for row in self.rows:
            self.place.setdefault(row["group"], len(self.place))
        first = {self.place[row["group"]]: row for row in reversed(self.rows)}
        self.files = [data / first[place]["file_name"] for place in range(len(first))]
        self.people = [set[tuple[str, str]]() for _ in first]
        for row in self.rows:
            self.people[self.place[row["group"]]].add((row["person"], row["tone"]))
        self.network = Lite0Features()
        features = collect(extract(self.network, map(_opened, self.files)))
        self.mean = features.mean(axis=0)
        self.features = _directions(features - self.mean)

    def nearest(self, images: Sequence[np.ndarray]) -> Int[np.ndarray, "n top"]:
        """Places of the nearest emoji, the nearest first."""
        features = _directions(collect(extract(self.network, images)) - self.mean)
        return np.argsort(-features @ self.features.T, axis=1)[:, :TOP]


def known(gallery: Gallery, n: int, seed: int) -> list[Asked]:
    """``n`` of the training emoji that have a caption and no tone."""
    named = [Asked(row["text"], gallery.place[row["group"]]) for row in gallery.rows if _trained(row) and not row["tone"]]
    return [named[i] for i in sorted(np.random.default_rng(seed).permutation(len(named))[:n])]


def tones(gallery: Gallery) -> list[Asked]:
    """Held-out people in a tone."""
    return [Asked(row["text"], gallery.place[row["group"]]) for row in gallery.rows if row["tone"] and row["split"] == "held_out"]


def unused(gallery: Gallery) -> list[Asked]:
    """Names of training emoji that are not trained on."""
    return [Asked(alias, gallery.place[row["group"]]) for row in gallery.rows for alias in row["unused_aliases"]]


def copied(gallery: Gallery, asked: Sequence[Asked]) -> Int[np.ndarray, "n 1"]:
    """For each caption the place of the emoji whose training caption has most words in common with it, of these the shortest."""
    captions = [(frozenset(_words(row["text"])), gallery.place[row["group"]]) for row in gallery.rows if _trained(row)]

    def likest(text: str) -> int:
        words = frozenset(_words(text))
        return max(captions, key=lambda caption: (len(words & caption[0]), -len(caption[0])))[1]

    return np.array([[likest(one.text)] for one in asked])


def named(asked: Sequence[Asked], nearest: Int[np.ndarray, "n top"]) -> dict[str, float]:
    """Shares: the emoji itself is nearest, is among the nearest."""
    hits = nearest == np.array([[one.place] for one in asked])
    return {"first": float(hits[:, 0].mean()), f"top {TOP}": float(hits.any(axis=1).mean())}


def person_and_tone(gallery: Gallery, asked: Sequence[Asked], nearest: Int[np.ndarray, "n top"]) -> dict[str, float]:
    """Shares: the nearest emoji is this person, in this tone, both. A picture may be of several people of one look."""
    figures = []
    for one, (place, *_) in zip(asked, nearest, strict=True):
        wanted, found = gallery.people[one.place], gallery.people[place]
        right = [any(pair[side] == other[side] for pair in wanted for other in found) for side in (0, 1)]
        figures.append((*right, bool(wanted & found)))
    return dict(zip(("person", "tone", "person and tone"), np.mean(figures, axis=0).tolist(), strict=True))


def figures(gallery: Gallery, asked: dict[str, list[Asked]], images: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """The shares of every kind of captions that there are images for."""
    tones = asked["tones"]
    shares = of_places(gallery, asked, {kind: gallery.nearest(pictures) for kind, pictures in images.items()})
    return shares | {"tone by colour": tone_by_colour(gallery, tones, images["tones"])}


def of_places(gallery: Gallery, asked: dict[str, list[Asked]], found: Mapping[str, Int[np.ndarray, "n top"]]) -> dict[str, float]:
    """The shares of every kind of captions that there are places for, the likest first."""
    of_names = {f"{kind}, {what}": x for kind in found if kind != "tones" for what, x in named(asked[kind], found[kind]).items()}
    return of_names | person_and_tone(gallery, asked["tones"], found["tones"])


@torch.no_grad()
def understood(pipe: Pipeline, gallery: Gallery, asked: Sequence[Asked]) -> Int[np.ndarray, "n top"]:
    """Places of the emoji whose latents are the likest to each caption by the model's own text, which is aligned."""
    text = aligned_text(pipe)
    assert text is not None
    assert text.tower is not None
    towers, texts = [], []
    for start in range(0, len(gallery.files), BATCH):
        images = np.stack([_opened(file) for file in gallery.files[start : start + BATCH]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        towers.append(text.tower(pipe.model.encode(pixels)))
    for start in range(0, len(asked), BATCH):
        cond = text({"text": [one.text for one in asked[start : start + BATCH]]}, pipe.model.encode)
        assert cond.vector is not None
        texts.append(cond.vector)
    return np.argsort(-(torch.cat(texts) @ F.normalize(torch.cat(towers), dim=1).T).numpy(), axis=1)[:, :TOP]


def aligned_text(pipe: Pipeline) -> TextConditioner | None:
    """The model's text if it is aligned with its latents."""
    return next(iter(aligned_texts(pipe.model.conditioners)), None)


def tone_by_colour(gallery: Gallery, asked: Sequence[Asked], images: Sequence[np.ndarray]) -> float:
    """The share of people in one tone whose picture has more pixels near that colour of skin than near any other."""
    right = []
    for one, image in zip(asked, images, strict=True):
        wanted = {tone for _, tone in gallery.people[one.place]}
        if wanted <= set(TONES):
            away = np.linalg.norm(image[:, :, None].astype(float) - SKIN, axis=-1)
            pixels = away.argmin(axis=-1)[away.min(axis=-1) < NEAR]
            right.append(TONES[int(np.bincount(pixels, minlength=len(TONES)).argmax())] in wanted)
    return float(np.mean(right))


def drawn(pipe: Pipeline, asked: Sequence[Asked], request: SampleRequest) -> list[np.ndarray]:
    """An image for each caption; image i has seed ``request.seed + i``."""
    images: list[np.ndarray] = []
    for start in range(0, len(asked), BATCH):
        texts = [one.text for one in asked[start : start + BATCH]]
        batch = {"index": torch.arange(start, start + len(texts)), "text": texts}
        for event in pipe.draw_batch(batch, request.replace(seed=request.seed + start)):  # type: ignore[arg-type]
            if isinstance(event, Drawn):
                images += list(event.pixels)
        print(f"guidance {request.guidance}: {start + len(texts)} of {len(asked)} images", flush=True)
    return images


def _trained(row: dict[str, Any]) -> bool:
    return bool(row["text"]) and row["split"] == "train"


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _opened(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _directions(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model that draws from captions")
    parser.add_argument("--data", type=Path, required=True, help="what `lw data openmoji` wrote")
    parser.add_argument("-n", type=int, default=500, help="known captions (default: 500)")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0], help="scales (default: 3)")
    parser.add_argument("--sampler", help="default: the model's")
    parser.add_argument("--steps", type=int, default=20, help="of sampling (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    options = parser.parse_args()
    pipe, gallery = pipeline(options.model, precision=options.precision), Gallery(options.data)
    asked = {"known": known(gallery, options.n, options.seed), "tones": tones(gallery), "unused": unused(gallery)}
    rows: list[dict[str, Any]] = [
        {"images": "of the nearest training caption", **person_and_tone(gallery, asked["tones"], copied(gallery, asked["tones"]))}
    ]
    itself = {kind: np.stack([_opened(gallery.files[one.place]) for one in asked[kind]]) for kind in ("known", "tones")}
    rows.append(
        {"images": "the emoji, through the first stage", **figures(gallery, asked, {k: reconstructed(pipe, x) for k, x in itself.items()})}
    )
    if aligned_text(pipe) is not None:
        places = {kind: understood(pipe, gallery, captions) for kind, captions in asked.items()}
        rows.append({"images": "of the latent likest to the caption", **of_places(gallery, asked, places)})
    for guidance in options.guidance:
        request = SampleRequest(
            guidance=guidance, sampler=options.sampler or pipe.defaults.sampler, steps=options.steps, seed=options.seed, batch=BATCH
        )
        images = {kind: drawn(pipe, captions, request) for kind, captions in asked.items()}
        rows.append({"images": f"drawn, guidance {guidance:g}", **figures(gallery, asked, images)})
    columns = list(rows[-1])
    print(
        table(
            columns,
            [[f"{row[name]:.3f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in columns] for row in rows],
        )
    )
    facts = {name: getattr(options, name) for name in ("sampler", "steps", "seed", "precision")} | {
        name: len(captions) for name, captions in asked.items()
    }
    print("\nwritten to", save("captions", rows, model=Path(options.model).name, gallery=len(gallery.files), **facts))


if __name__ == "__main__":
    main()
