"""Emoji of 128 px in two ways: the model of 64 px fine-tuned at that size, or its pictures enlarged by a model of super-resolution.

Both draw the same captions of training emoji. Beside them stand the pictures of 64 px enlarged bicubically, what the enlarger makes of
real ones made small, and real ones of 128 px through the first stage. Figures: distance to all captioned training images of 128 px, how
often the emoji named is nearest or among the five nearest (`captions.py`; captions without a skin tone alone), pictures a second from the
caption to 128 px.

    python benchmarks/emoji_128.py --data openmoji128 --enlarger openmoji-128 --finetuned runs/fine-tuned
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from captions import Asked, drawn
from comparison import Judge
from PIL import Image
from record import save, table
from restoration import BATCH, Pictures, pipeline, reconstructed
from restoration import drawn as drawn_for
from super_resolution import enlarged

from latentworks.data.degrade import back_project, bicubic
from latentworks.data.transforms import to_tensor
from latentworks.request import SampleRequest

SMALL, SIZE, FACTOR, STEPS, BACK = "openmoji-64", 128, 2, (4, 25), 10


def timed(make: Callable[[], Pictures]) -> tuple[Pictures, float]:
    """Pictures, and the seconds they took."""
    began = time.perf_counter()
    made = make()
    return made, time.perf_counter() - began


def methods(options: argparse.Namespace, asked: list[Asked], real: Pictures) -> Iterator[tuple[str, Pictures, float]]:
    """What each row is called, its pictures and the seconds they took."""
    request = SampleRequest(seed=options.seed, batch=BATCH)
    small, enlarger = pipeline(SMALL, precision=options.precision), pipeline(options.enlarger, SIZE, options.precision)

    def enlarge(pictures: Pictures, steps: int | None = None) -> Pictures:
        wanted = request.replace(steps=steps)
        return drawn_for(enlarger, lambda rows: {"low_res": to_tensor(pictures[rows])}, len(pictures), wanted)

    def project(pictures: Pictures, onto: Pictures) -> Pictures:
        return np.stack([back_project(image, low, FACTOR, BACK) for image, low in zip(pictures, onto, strict=True)])

    reduced = np.stack([bicubic(image, FACTOR) for image in real])
    yield "real, through the first stage", *timed(lambda: reconstructed(enlarger, real))
    yield "real of 64 px, bicubic enlargement", *timed(lambda: enlarged(reduced, FACTOR))
    yield "real of 64 px, enlarger", *timed(lambda: enlarge(reduced))
    drawings, seconds = timed(lambda: np.stack(drawn(small, asked, request)))
    larger, more = timed(lambda: enlarged(drawings, FACTOR))
    yield f"{SMALL}, bicubic enlargement", larger, seconds + more
    for steps in STEPS:
        larger, more = timed(partial(enlarge, drawings, steps))
        yield f"{SMALL}, enlarger, {steps} steps", larger, seconds + more
    larger, more = timed(lambda: enlarge(drawings))
    yield f"{SMALL}, enlarger", larger, seconds + more
    larger, projecting = timed(lambda: project(larger, drawings))
    yield f"{SMALL}, enlarger, {BACK} steps of back-projection", larger, seconds + more + projecting
    if options.finetuned is not None:
        tuned = pipeline(options.finetuned, precision=options.precision)
        yield "fine-tuned at 128 px", *timed(lambda: np.stack(drawn(tuned, asked, request)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what `lw data openmoji --size 128` wrote")
    parser.add_argument("--enlarger", required=True, help="a model of super-resolution x2")
    parser.add_argument("--finetuned", help="a model that draws from captions at 128 px")
    parser.add_argument("-n", type=int, default=500, help="captions (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    parser.add_argument("--pictures", type=Path, help="a PNG to write: a row of pictures for each method")
    options = parser.parse_args()
    judge = Judge(options.data, options.n)
    real = np.stack([np.asarray(Image.open(judge.gallery.files[one.place]).convert("RGB")) for one in judge.asked])
    rows: list[dict[str, Any]] = []
    strips = [np.hstack(real[:: len(real) // 8][:8])]
    for name, made, seconds in methods(options, judge.asked, real):
        rows.append({"pictures": name, **judge.figures(list(made)), "images/s": round(len(made) / seconds, 2)})
        strips.append(np.hstack(made[:: len(made) // 8][:8]))
        print(rows[-1], flush=True)
    if options.pictures is not None:
        Image.fromarray(np.vstack(strips)).save(options.pictures)
    columns = list(rows[0])
    print(table(columns, [[str(row[column]) for column in columns] for row in rows]))
    facts = {name: getattr(options, name) for name in ("n", "seed", "precision")}
    print("\nwritten to", save("emoji_128", rows, enlarger=Path(options.enlarger).name, **facts))


if __name__ == "__main__":
    main()
