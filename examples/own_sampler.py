"""A sampler of your own is a generator of steps: Heun's method on the bundled model, beside DDIM with about as many evaluations."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import latentworks as lw
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.guidance import classifier_free
from latentworks.diffusion.process import Process
from latentworks.diffusion.samplers import ddim
from latentworks.grids import save_sheet, sheet
from latentworks.random import randn_like_per_image
from latentworks.types import Denoise, RandnLike, Step


def heun(denoise: Denoise, x: Tensor, process: Process, timesteps: Sequence[int], randn_like: RandnLike) -> Iterator[Step]:
    """Algorithm 1 of arXiv:2206.00364 without added noise, in y = x / alpha, whose noise level is s = sigma / alpha."""
    for t, t_next in pairwise(timesteps):
        (alpha, sigma), (alpha_next, sigma_next) = process.level(t), process.level(t_next)
        s, s_next = sigma / alpha, sigma_next / alpha_next
        x0 = denoise(x, torch.full((len(x),), t))
        slope = (x / alpha - x0) / s
        y = x / alpha + (s_next - s) * slope
        if s_next > 0:
            slope_next = (y - denoise(alpha_next * y, torch.full((len(x),), t_next))) / s_next
            y = x / alpha + (s_next - s) * (slope + slope_next) / 2
        x = alpha_next * y
        yield Step(x, x0, t_next)


def main() -> None:
    model, prompt, seeds = lw.load_model("openmoji-64"), "red heart", range(4)
    pictures, captions = [], []
    with torch.no_grad():
        cond, uncond = (model.condition({"text": [text] * len(seeds)}) for text in (prompt, ""))
        denoise = classifier_free(model.predict, cond, uncond, 3.0)
        for name, sampler, steps in (("heun", heun, 10), ("ddim", ddim, 20)):
            noise = randn_like_per_image("start", seeds)(torch.empty(len(seeds), model.first_stage.channels, 16, 16))
            *_, last = sampler(denoise, noise, model.process, model.process.timesteps(steps, "trailing"), torch.randn_like)
            pixels = from_tensor(model.first_stage.decode(last.x))
            pictures += map(Image.fromarray, pixels)
            captions += [f"{name}, {steps} steps"] * len(pixels)
    save_sheet(Path("own_sampler.png"), sheet(pictures, captions, columns=len(seeds), scale=2))
    print("own_sampler.png: the same noise, two samplers")


if __name__ == "__main__":
    main()
