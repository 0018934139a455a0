"""Super-resolution x4 by diffusion against a bicubic enlargement and a regression network of the same size and time.

On the degradation each was trained for: distance, PSNR and SSIM to the large images, and how well a result, made small again, agrees with
the small image it was made from (dB), with and without back-projection. Then a model trained on BSR degradations against one trained on
bicubic ones, on two degradations that neither has seen:

- "box": the mean of 4 x 4 pixels, shot noise of at most 400 photons a pixel, WebP of quality 60;
- "lens": a horizontal motion blur of 7 pixels, every fourth pixel, uniform noise of +-4, 64 colours without dithering.

Regression networks come from `baselines.py`. Models are folders of ours; images are those of a folder, by default its held-out part.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from record import save, table
from regressors import SuperResolver, load
from restoration import BATCH, Measure, Pictures, drawn, images, pipeline, recipe_of, reconstructed

from latentworks.conditioners import LowResConfig
from latentworks.data.dataset import Extras
from latentworks.data.degrade import Degradation, back_project, bicubic
from latentworks.data.transforms import Pixels, from_tensor, resize, to_tensor
from latentworks.metrics.paired import psnr
from latentworks.random import seed_of
from latentworks.request import SampleRequest

BASELINES = Path(__file__).parent / "baselines"
STEPS = 10  # of back-projection


def box(image: Pixels, factor: int, rng: np.random.Generator) -> Pixels:
    """Mean, shot noise, WebP."""
    small = image.reshape(image.shape[0] // factor, factor, -1, factor, image.shape[2]).mean(axis=(1, 3)) / 255
    noisy = rng.poisson(small * 400) / 400
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)).save(file, "WEBP", quality=60)
    return np.asarray(Image.open(file).convert("RGB"))


def lens(image: Pixels, factor: int, rng: np.random.Generator) -> Pixels:
    """Motion blur, decimation, uniform noise, few colours."""
    padded = np.pad(image.astype(float), ((0, 0), (3, 3), (0, 0)), mode="reflect")
    blurred = np.mean([padded[:, i : i + image.shape[1]] for i in range(7)], axis=0)
    small = blurred[factor // 2 :: factor, factor // 2 :: factor]
    noisy = (small + rng.uniform(-4, 4, small.shape)).clip(0, 255)
    return np.asarray(Image.fromarray(np.rint(noisy).astype(np.uint8)).quantize(64, dither=Image.Dither.NONE).convert("RGB"))


UNSEEN: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {"box": box, "lens": lens}


def enlarged(low_res: Pictures, factor: int) -> Pictures:
    """Bicubic."""
    return np.stack([resize(small, factor * small.shape[0], factor * small.shape[1]) for small in low_res])


def regressed(network: SuperResolver, low_res: Pictures) -> Pictures:
    """What the network gives, batch by batch."""
    with torch.no_grad():
        return np.concatenate([from_tensor(network(to_tensor(low_res[i : i + BATCH]))) for i in range(0, len(low_res), BATCH)])


def consistency(made: Pictures, low_res: Pictures, factor: int) -> float:
    """Mean PSNR in dB of the results, made small by the bicubic filter, to the small images."""
    small = np.stack([bicubic(image, factor) for image in made])
    return float(psnr(to_tensor(small), to_tensor(low_res)).clamp(max=100).mean())  # equal ones would be infinite


class Task:
    """A model for a degradation, the regression network trained on the same, and how both are used."""

    def __init__(self, kind: Degradation, name: str, baselines: Path, request: SampleRequest, precision: str) -> None:
        self.kind, self.recipe, self.pipe, self.request = kind, recipe_of(name), pipeline(name, precision=precision), request
        configs = [config for config in self.recipe.conditioners if isinstance(config, LowResConfig)]
        if not configs or configs[0].degradation != kind:
            raise ValueError(f"--{kind}: {name} was not trained on small images of this kind")
        self.factor = configs[0].factor
        network, self.baseline = load(baselines / f"super-resolution-{kind}", "super_resolution")
        assert isinstance(network, SuperResolver)
        self.network = network

    def methods(self, low_res: Pictures) -> dict[str, Pictures]:
        """The results of the regression network and of the model."""
        made = drawn(self.pipe, lambda rows: {"low_res": to_tensor(low_res[rows])}, len(low_res), self.request)
        return {f"regression, trained on {self.kind}": regressed(self.network, low_res), f"diffusion, trained on {self.kind}": made}


def rows_of(degradation: str, methods: dict[str, Pictures], low_res: Pictures, factor: int, measure: Measure) -> list[dict[str, Any]]:
    """One row of figures a method."""
    return [
        {
            "degradation": degradation,
            "method": method,
            **{name: round(value, 4) for name, value in measure(made)._asdict().items()},
            "consistency": round(consistency(made, low_res, factor), 2),
        }
        for method, made in methods.items()
    ]


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows, and what belongs beside them."""
    request = SampleRequest(steps=options.steps, seed=options.seed, batch=BATCH)
    tasks = [Task(kind, getattr(options, kind), options.baselines, request, options.precision) for kind in get_args(Degradation)]
    factor, rows = tasks[0].factor, []
    seen = [
        images(options.data, task.recipe, Extras(low_res=(task.kind, factor)), options.n, options.split, options.seed) for task in tasks
    ]
    if not np.array_equal(seen[0].pixels, seen[1].pixels):
        raise ValueError("--bsr: this model was trained on images prepared otherwise than --bicubic: train both by one recipe")
    measure = Measure(seen[0].pixels)
    for task, found in zip(tasks, seen, strict=True):
        assert found.low_res is not None
        ideal = {"first stage, of the large image itself": reconstructed(task.pipe, found.pixels)}
        methods = {**ideal, "bicubic enlargement": enlarged(found.low_res, factor), **task.methods(found.low_res)}
        name, made = list(methods.items())[-1]
        pairs = zip(made, found.low_res, strict=True)
        methods[f"{name}, back-projected"] = np.stack([back_project(image, small, factor, STEPS) for image, small in pairs])
        rows += rows_of(task.kind, methods, found.low_res, factor, measure)
    for name, unseen in UNSEEN.items():
        draws = [np.random.default_rng(seed_of(options.seed, name, i)) for i in range(options.n)]
        low_res = np.stack([unseen(image, factor, rng) for image, rng in zip(seen[0].pixels, draws, strict=True)])
        methods = {"bicubic enlargement": enlarged(low_res, factor), **tasks[0].methods(low_res), **tasks[1].methods(low_res)}
        rows += rows_of(name, methods, low_res, factor, measure)
    baselines = {task.kind: task.baseline.model_dump(mode="json", exclude={"network"}) for task in tasks}
    settings = {"n": options.n, "steps": options.steps, "seed": options.seed, "precision": options.precision, "images": seen[0].name}
    return rows, {**settings, **measure.facts, "baselines": baselines}


def verdicts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Whether diffusion is nearer to real images than the others, and nearer where it was trained on BSR."""
    found = {(row["degradation"], row["method"]): row["distance"] for row in rows}
    for kind in get_args(Degradation):
        ours = found[kind, f"diffusion, trained on {kind}"]
        for other in ("bicubic enlargement", f"regression, trained on {kind}"):
            yield f"{kind}: diffusion better than {other}: {'yes' if ours < found[kind, other] else 'NO'}"
    for name in UNSEEN:
        bicubic_one, bsr_one = (found[name, f"diffusion, trained on {kind}"] for kind in ("bicubic", "bsr"))
        yield f"{name}: trained on bsr better than trained on bicubic: {'yes' if bsr_one < bicubic_one else 'NO'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bicubic", required=True, help="the model trained on bicubic small images")
    parser.add_argument("--bsr", required=True, help="the model trained on BSR degradations")
    parser.add_argument("--baselines", type=Path, default=BASELINES, help="what baselines.py wrote (default: benchmarks/baselines)")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--split", choices=["held_out", "train"], default="held_out", help="which part of it (default: held_out)")
    parser.add_argument("-n", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--steps", type=int, default=25, help="of sampling (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    rows, facts = run(parser.parse_args())
    columns = ["distance", "psnr", "ssim", "consistency"]
    lines = [[f"{row['degradation']}: {row['method']}", *(f"{row[key]:.2f}" for key in columns)] for row in rows]
    print(table(["degradation: method", *columns], lines))
    print("\ndistance:", *verdicts(rows), sep="\n")
    print("written to", save("super_resolution", rows, **facts))


if __name__ == "__main__":
    main()
