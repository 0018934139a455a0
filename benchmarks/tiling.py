"""Beyond the training size, in tiles: are they seen in the picture, and what do memory and time come to. Linux only.

The first stage is given photographs (scikit-image's) of 256 x 256 pixels, as a whole and in 4 x 4 tiles: the largest difference between the
two, of images in 255ths; and the mean difference of neighbouring pixels across the tiles' borders over that beside them, as a share of the
same in the whole. The latter is also taken where the tiles of samples begin and end, by itself. Then the
model draws, unguided, with tiles of its training size: peak memory (highest resident size of a process of its own) at 512 and 1,024 pixels
a side, beside that without tiles; and the time of the larger one with the model's own sampler and steps.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from jaxtyping import Float
from PIL import Image
from record import save, table
from torch import Tensor

from latentworks.data.transforms import to_tensor
from latentworks.diffusion.tiling import windows
from latentworks.first_stage import FirstStage
from latentworks.first_stage.tiled import in_tiles
from latentworks.pipeline import Drawn, Pipeline, load
from latentworks.request import SampleRequest

PHOTOGRAPHS = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "rocket.jpg")
SIDE, TILES = 256, 4


def photographs() -> Float[Tensor, "b 3 h w"]:
    """Squares from their middle."""
    folder, pixels = Path(skimage.__file__).parent / "data", []
    for name in PHOTOGRAPHS:
        image = Image.open(folder / name).convert("RGB")
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        square = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
        pixels.append(np.asarray(square))
    return to_tensor(np.stack(pixels))


def steepness(images: Float[Tensor, "b c h w"], borders: Sequence[int], factor: int, near: int = 2) -> float:
    """Mean |difference| of neighbours where these rows and columns begin, over that at ``near`` places before and after each.

    They are as far from a pixel of the latent: a decoder that enlarges ``factor`` times leaves its own mark at each of those.
    """
    across, elsewhere = [], []
    for x in (images, images.transpose(2, 3)):
        difference = x.diff(dim=2).abs().mean(dim=(0, 1, 3))  # of rows i and i + 1
        places = {border + k * factor for border in borders for k in range(-near, near + 1)} - set(borders)
        across.append(difference[[border - 1 for border in borders]])
        elsewhere.append(difference[[place - 1 for place in sorted(places)]])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def timed(work: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, float]:
    """What comes of one input after the other, and seconds for each."""
    began = time.perf_counter()
    out = torch.cat([work(each) for each in inputs.split(1)])
    return out, round((time.perf_counter() - began) / len(inputs), 2)


@torch.no_grad()
def first_stage_rows(first_stage: FirstStage) -> list[dict[str, Any]]:
    """Encoding and decoding in 4 x 4 tiles against the whole."""
    run, x, cut = in_tiles(SIDE // TILES // first_stage.factor), photographs(), f"{TILES} x {TILES} tiles"
    raw, whole_seconds = timed(first_stage.encode_raw, x)
    raw_of_tiles, seconds = timed(lambda each: first_stage.encode_raw(each, run), x)
    apart = float((raw_of_tiles - raw).abs().max() / raw.std())
    rows: list[dict[str, Any]] = [
        {"what": "encode, whole", "seconds": whole_seconds},
        {"what": f"encode, {cut}", "seconds": seconds, "largest_difference": f"{apart:.1e} deviations"},
    ]
    z = first_stage.to_latent(raw)
    image, whole_seconds = timed(lambda each: first_stage.decode(each).clamp(-1, 1), z)
    image_of_tiles, seconds = timed(lambda each: first_stage.decode(each, run).clamp(-1, 1), z)
    apart = 127.5 * float((image_of_tiles - image).abs().max())
    borders = range(SIDE // TILES, SIDE, SIDE // TILES)
    border = round(
        steepness(image_of_tiles, borders, first_stage.factor) / steepness(image, borders, first_stage.factor), 4
    )  # what a picture shows is nowhere the same
    return [
        *rows,
        {"what": "decode, whole", "seconds": whole_seconds},
        {"what": f"decode, {cut}", "seconds": seconds, "border_over_elsewhere": border, "largest_difference": f"{apart:.1e}/255"},
    ]


def sample_row(pipe: Pipeline, n: int = 8) -> dict[str, Any]:
    """Where a sample's tiles begin and end, in pixels: is it seen?"""
    settings = {"size": (SIDE, SIDE), "n": n, "batch": n, "tile": pipe.size, "guidance": 1.0}
    request = pipe.resolve(SampleRequest.parse(settings))
    *_, drawn = pipe.draw(request)
    assert isinstance(drawn, Drawn)
    factor = pipe.model.first_stage.factor
    tiles = windows(SIDE // factor, pipe.size // factor, (request.overlap or 0) // factor)
    ends = {side * factor for start, weights in tiles for side in (start, start + len(weights))} - {0, SIDE}
    border = round(steepness(to_tensor(drawn.pixels), sorted(ends), factor), 4)
    return {"what": f"{n} samples of {SIDE} x {SIDE} px, tiles of {pipe.size} px", "border_over_elsewhere": border}


def draw(model: str, side: int, tiled: bool, steps: int | None) -> dict[str, Any]:
    """Draw one picture in this process: seconds, peak memory."""
    pipe = load(model)
    began = time.perf_counter()
    settings = {"size": (side, side), "steps": steps, "guidance": 1.0, "tile": pipe.size if tiled else None}
    *_, drawn = pipe.draw(SampleRequest.parse(settings))
    assert isinstance(drawn, Drawn)
    what = f"sample of {side} x {side} px, {f'tiles of {pipe.size} px' if tiled else 'whole'}"
    took = time.perf_counter() - began
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak = int(line.split()[1]) * 1024  # not ru_maxrss, which a process begins with what its parent had
    return {"what": what, "steps": drawn.requests[0].steps, "peak_mb": round(peak / 1e6), "seconds": round(took, 1)}


def apart(*arguments: str) -> dict[str, Any]:
    """The same in a fresh process."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="openmoji-64", help="bundled name or model folder (default: openmoji-64)")
    parser.add_argument("--steps", type=int, help="steps of the megapixel sample (default: the model's own)")
    parser.add_argument("--draw", nargs=3, metavar=("SIDE", "TILED", "STEPS"), help="draw in this process, print the row as JSON")
    options = parser.parse_args()
    if options.draw:
        side, tiled, steps = (int(value) for value in options.draw)
        print(json.dumps(draw(options.model, side, bool(tiled), steps or None)))
        return
    pipe = load(options.model)
    rows = [*first_stage_rows(pipe.model.first_stage), sample_row(pipe)]
    for side, tiled, steps in ((512, 0, 1), (512, 1, 1), (1024, 0, 1), (1024, 1, options.steps or 0)):  # memory is that of one step
        rows.append(apart(options.model, "--draw", str(side), str(tiled), str(steps)))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(table([name.replace("_", " ") for name in columns], [[str(row.get(name, "")) for name in columns] for row in rows]))
    print("\nwritten to", save("tiling", rows, model=Path(options.model).name))


if __name__ == "__main__":
    main()
