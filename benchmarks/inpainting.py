"""Inpainting by diffusion against filling without learning, against a model that was not trained to, and against a regression network.

Holes are those of training (`latentworks.data.masks`), image i's a function of the seed and i. Every result is pasted into the image, so
all methods share the pixels outside. The distance over the hole is taken between crops: the smallest square around the hole that lies
within the image, of the result and of the real image. Beside it stand the distance of whole images, PSNR over the pixels of the hole, and
the perceptual distance to the real image (LPIPS's formula on EfficientNet-Lite1), which favours one average answer, see
docs/inpainting-baselines.md. Last, images go through the same request as `lw sample --image X --mask M`, and bytes outside the mask that
changed are counted.

The regression network comes from `baselines.py`. Models are folders of ours; images are those of a folder, by default its held-out part.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import save, table
from regressors import Inpainter, load
from restoration import BATCH, Holes, Measure, Pictures, crops, drawn, images, pipeline, recipe_of, reconstructed
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from latentworks.data.dataset import Extras
from latentworks.data.transforms import from_tensor, to_tensor
from latentworks.diffusion.guidance import known_pixels
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.image_guidance import known_latent
from latentworks.metrics.distances import frechet_distance
from latentworks.nn.perceptual import EfficientNetPerceptual
from latentworks.pipeline import Drawn, Pipeline
from latentworks.random import randn_like_per_image
from latentworks.request import SampleRequest
from latentworks.types import Batch, Cond

BASELINES = Path(__file__).parent / "baselines"
CLAIM, FINETUNED = 1.3, 1.2  # times by which the distance over the hole is to be better
IDEAL = "first stage, told what was there"
PASTED = 16  # images whose bytes are compared


def biharmonic(pixels: Pictures, holes: Holes) -> Pictures:
    """The smoothest surface over each hole, channel by channel: where the sum of squared Laplacians of the image is least.

    Not scikit-image's `inpaint_biharmonic`: up to its 0.26 it reads memory that it never wrote wherever a hole touches the border.
    """
    height, width = holes.shape[1:]
    curved = sparse.kron(_second(height), sparse.eye(width)) + sparse.kron(sparse.eye(height), _second(width))
    filled = []
    for image, hole in zip(pixels, holes.reshape(len(holes), -1), strict=True):
        flat = image.reshape(-1, image.shape[-1]).astype(float)
        unknown, known = curved.tocsc()[:, hole], curved.tocsc()[:, ~hole]
        flat[hole] = spsolve(unknown.T @ unknown, -unknown.T @ (known @ flat[~hole])).reshape(-1, image.shape[-1])
        filled.append(np.rint(flat.clip(0, 255)).astype(np.uint8).reshape(image.shape))
    return np.stack(filled)


def _second(n: int) -> sparse.csr_array:
    """The second difference along n pixels, of which those at the ends have themselves for neighbours."""
    middle = np.full(n, -2.0)
    middle[[0, -1]] = -1
    return sparse.diags_array([np.ones(n - 1), middle, np.ones(n - 1)], offsets=[-1, 0, 1]).tocsr()


def regressed(network: Inpainter, pixels: Pictures, holes: Holes) -> Pictures:
    """What the network fills in."""
    made = []
    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        with torch.no_grad():
            made.append(from_tensor(network(to_tensor(pixels[rows]), torch.from_numpy(holes[rows])[:, None])))
    return np.concatenate(made)


def replaced(pipe: Pipeline, pixels: Pictures, holes: Holes, request: SampleRequest) -> Pictures:
    """A model without conditions, which is shown the known latent at every step."""
    made, model, request = [], pipe.model, pipe.filled(request)
    assert request.steps is not None
    assert request.sampler is not None
    timesteps = model.process.timesteps(request.steps, pipe.defaults.spacing)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return model.predict(x_t, t, Cond())

    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        seeds = [request.seed + i for i in range(len(pixels))[rows]]
        with torch.no_grad():
            known, hole = known_latent(model.first_stage, to_tensor(pixels[rows]), torch.from_numpy(holes[rows])[:, None])
            denoise = known_pixels(predict, known, hole, model.process, randn_like_per_image("known pixels", seeds))
            x = randn_like_per_image("start", seeds)(known)
            ancestral = randn_like_per_image("ancestral", seeds)
            *_, last = SAMPLERS[request.sampler](denoise, x, model.process, timesteps, ancestral)
        made.append(pipe.decode(last.x))
    return np.concatenate(made)


def inpainted(pipe: Pipeline, pixels: Pictures, holes: Holes, request: SampleRequest) -> Pictures:
    """What a model trained to inpaint draws; it never sees what is in the hole."""

    def fields(rows: slice) -> Batch:
        return {"image": to_tensor(pixels[rows]), "mask": torch.from_numpy(holes[rows])[:, None]}

    return drawn(pipe, fields, len(pixels), request)


def changed_outside(pipe: Pipeline, pixels: Pictures, holes: Holes, request: SampleRequest) -> int:
    """Bytes outside the masks that a request changes."""
    changed = 0
    for image, hole in zip(pixels[:PASTED], holes[:PASTED], strict=True):
        one = request.replace(image=Image.fromarray(image), mask=Image.fromarray(hole))
        (made,) = (event.pixels[0] for event in pipe.draw(one) if isinstance(event, Drawn))
        changed += int((made != image)[~hole].sum())
    return changed


def figures(
    pasted: Pictures, pixels: Pictures, holes: Holes, measure: Measure, real: np.ndarray, perceptual: EfficientNetPerceptual
) -> dict[str, float]:
    """Of one method's results."""
    hole_distance = frechet_distance(real, measure.embed(crops(pasted, holes)))
    errors = np.square(pasted.astype(float) - pixels).mean(axis=-1)
    near = 10 * np.log10(255**2 / np.maximum((errors * holes).sum(axis=(1, 2)) / holes.sum(axis=(1, 2)), 1e-6))
    with torch.no_grad():
        parts = [slice(start, start + BATCH) for start in range(0, len(pixels), BATCH)]
        apart = torch.cat([perceptual(to_tensor(pasted[rows]), to_tensor(pixels[rows])) for rows in parts])
    return {
        "hole_distance": round(hole_distance, 3),
        "distance": round(measure.distance(pasted), 3),
        "hole_psnr": round(float(near.mean()), 3),
        "perceptual": round(float(apart.mean()), 4),
    }


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """All rows, and what belongs beside them."""
    recipe, pipe = recipe_of(options.model), pipeline(options.model, options.size, options.precision)
    found = images(options.data, recipe, Extras(holes=True), options.n, options.split, options.seed, options.size)
    pixels, holes = found.pixels, found.holes
    assert holes is not None
    request = SampleRequest(steps=options.steps, seed=options.seed, batch=BATCH)
    network, baseline = load(options.baselines / "inpainting", "inpainting")
    assert isinstance(network, Inpainter)
    methods = {
        IDEAL: reconstructed(pipe, pixels),
        "biharmonic": biharmonic(pixels, holes),
        "known-pixel replacement": replaced(pipeline(options.unconditional, options.size), pixels, holes, request),
        "regression, fast Fourier convolutions": regressed(network, pixels, holes),
        "diffusion": inpainted(pipe, pixels, holes, request),
    }
    if options.finetuned:
        methods["diffusion, fine-tuned"] = inpainted(pipeline(options.finetuned, options.size, options.precision), pixels, holes, request)
    measure, perceptual, rows = Measure(pixels), EfficientNetPerceptual(), []
    real = measure.embed(crops(pixels, holes))
    for method, made in methods.items():
        pasted = np.where(holes[..., None], made, pixels)
        rows.append({"method": method, **figures(pasted, pixels, holes, measure, real, perceptual)})
    settings = {name: getattr(options, name) for name in ("n", "steps", "seed", "precision")}
    settings |= {"images": found.name, "share": round(float(holes.mean()), 4)}
    changed = changed_outside(pipe, pixels, holes, request)
    facts = {"changed_outside": changed, "baseline": baseline.model_dump(mode="json", exclude={"network"})}
    return rows, {**settings, **measure.facts, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model trained to inpaint")
    parser.add_argument("--unconditional", required=True, help="a model without conditions, for known-pixel replacement")
    parser.add_argument("--finetuned", help="the first one after training at --size, as another row")
    parser.add_argument("--baselines", type=Path, default=BASELINES, help="what baselines.py wrote (default: benchmarks/baselines)")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--split", choices=["held_out", "train"], default="held_out", help="which part of it (default: held_out)")
    parser.add_argument("--size", type=int, help="pixels a side (default: what the model was trained on)")
    parser.add_argument("-n", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--steps", type=int, default=25, help="of sampling (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of drawing (default: float32)")
    options = parser.parse_args()
    rows, facts = run(options)
    columns, found = list(rows[0])[1:], {row["method"]: row["hole_distance"] for row in rows}
    ours = found["diffusion"]
    lines = [[row["method"], *(f"{row[key]:.3f}" for key in columns), f"{row['hole_distance'] / ours:.2f}"] for row in rows]
    print(table(["method", *columns, "hole_distance / diffusion's"], lines))
    print()
    for method, distance in found.items():
        if method == "diffusion, fine-tuned":
            print(f"fine-tuned at least {FINETUNED} times better: {'yes' if ours / distance >= FINETUNED else 'NO'}")
        elif method not in (IDEAL, "diffusion"):
            print(f"at least {CLAIM} times better than {method}: {'yes' if distance / ours >= CLAIM else 'NO'}")
    print(f"bytes outside the mask that changed, in {min(PASTED, options.n)} images: {facts['changed_outside']}")
    print("written to", save("inpainting" if options.size is None else f"inpainting_{options.size}", rows, **facts))


if __name__ == "__main__":
    main()
