"""Image guidance of a model without a condition: how well samples match the thumbnails that guide them, and what that costs in quality.

Thumbnails are real images of the data, reduced four times by the bicubic filter; sample i follows thumbnail i (`--guide down`), at each
noise that is believed in them, and with `--paper` at the paper's constant weight; with a noise, also after `--descent` steps of descent.
The match is the mean PSNR in dB between the sample, reduced the same way, and its thumbnail. The distance is Fréchet's in
EfficientNet-Lite0's features to the images themselves; that of samples without guidance, from the same noise, is the one to compare with.

    python benchmarks/image_guidance.py models/scenes-unconditional --data scenes --noise 0.1 0.05
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import RESULTS, save, table
from restoration import BATCH, Measure, Pictures, images, pipeline, recipe_of
from torch import Tensor

from latentworks.data.dataset import Extras
from latentworks.data.degrade import bicubic
from latentworks.data.transforms import to_tensor
from latentworks.diffusion.guidance import descend, image
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.grids import save_sheet, sheet
from latentworks.image_guidance import ImageGuidanceConfig, image_loss
from latentworks.metrics.paired import psnr
from latentworks.pipeline import Pipeline
from latentworks.random import randn_like_per_image
from latentworks.types import Cond

FACTOR, SHOWN = 4, 6
CLOSE, WITHIN = 25.0, 1.3  # dB, and times the distance without guidance


def drawn(pipe: Pipeline, small: Pictures, config: ImageGuidanceConfig, options: argparse.Namespace) -> list[Pictures]:
    """A sample for each thumbnail; with a noise, the same after descent too. Scale 0: no guidance. Image i: seed ``options.seed + i``."""
    made, closer, model = [], [], pipe.model
    timesteps = model.process.timesteps(options.steps, pipe.defaults.spacing)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return model.predict(x_t, t, Cond())

    for start in range(0, len(small), BATCH):
        rows = to_tensor(small[start : start + BATCH])
        seeds = [options.seed + start + i for i in range(len(rows))]
        loss = image_loss(config, model.first_stage, rows, (pipe.size, pipe.size))
        denoise = image(predict, loss, model.process, config.scale, config.noise)
        side = pipe.size // model.first_stage.factor
        x = randn_like_per_image("start", seeds)(torch.empty(len(rows), model.first_stage.channels, side, side))
        with torch.no_grad():
            *_, last = SAMPLERS[options.sampler](denoise, x, model.process, timesteps, randn_like_per_image("ancestral", seeds))
        made.append(pipe.decode(last.x))
        if config.noise is not None:
            closer.append(pipe.decode(descend(last.x, loss, options.descent)))
        print(f"noise {config.noise}, scale {config.scale:g}: {start + len(rows)} of {len(small)} images", flush=True)
    return [np.concatenate(parts) for parts in (made, closer) if parts]


def row(name: str, made: Pictures, small: Pictures, measure: Measure) -> dict[str, Any]:
    """Match and distance."""
    reduced = np.stack([bicubic(one, FACTOR) for one in made])
    match = float(psnr(to_tensor(reduced), to_tensor(small)).clamp(max=100).mean())
    return {"noise": name, "match": round(match, 2), "distance": round(measure.distance(made), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model without conditions")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--split", choices=["held_out", "train"], default="held_out", help="which part of it (default: held_out)")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.05], help="default: 0.05")
    parser.add_argument("--paper", action="store_true", help="also at the paper's constant weight")
    parser.add_argument("--descent", type=int, default=5, help="steps of descent at the end (default: 5)")
    parser.add_argument("-n", type=int, default=1000, help="images (default: 1000)")
    parser.add_argument("--steps", type=int, default=25, help="of sampling (default: 25)")
    parser.add_argument("--sampler", default="ddim", help="default: ddim")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = images(options.data, recipe_of(options.model), Extras(), options.n, options.split, options.seed)
    pipe, measure = pipeline(options.model), Measure(found.pixels)
    small = np.stack([bicubic(one, FACTOR) for one in found.pixels])
    settings = (
        {"none": {"scale": 0.0}}
        | {f"{noise:g}": {"noise": noise} for noise in options.noise}
        | ({"paper": {"noise": None}} if options.paper else {})
    )
    rows, shown = [], [[Image.fromarray(one) for one in small[:SHOWN]]]
    for name, values in settings.items():
        both = drawn(pipe, small, ImageGuidanceConfig.parse({"guide": "down", **values}), options)
        for label, made in zip((name, f"{name}, descent {options.descent}"), both, strict=False):
            rows.append(row(label, made, small, measure))
            shown.append([Image.fromarray(one) for one in made[:SHOWN]])
        facts = {"n": options.n, "steps": options.steps, "sampler": options.sampler, "seed": options.seed, "images": found.name}
        path = save("image_guidance", rows, model=Path(options.model).name, **facts, **measure.facts)
    side = (2 * pipe.size,) * 2
    cells = [one.resize(side, Image.Resampling.NEAREST) for line in shown for one in line]
    save_sheet(RESULTS / "image_guidance.png", sheet(cells, columns=len(shown[0])))
    alone = rows[0]["distance"]
    print(table(["noise", "match, dB", "distance"], [[one["noise"], f"{one['match']:.2f}", f"{one['distance']:.2f}"] for one in rows]))
    good = [one["noise"] for one in rows if one["match"] >= CLOSE and one["distance"] <= WITHIN * alone]
    print(f"\nat least {CLOSE:g} dB within {WITHIN} times the distance without guidance: {', '.join(good) or 'NONE'}")
    print("written to", path)


if __name__ == "__main__":
    main()
