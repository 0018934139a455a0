"""Training without a folder or a run: data is any object that gives batches by step, and the training loop is a generator to pull at.

Diffusion in pixels on 16 px discs of two colours, told apart by their class; `discs.png` shows four of each after some hundred steps.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from latentworks.conditioners import LabelConditioner, LabelConfig
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.first_stage import IdentityConfig, IdentityFirstStage
from latentworks.grids import save_sheet, sheet
from latentworks.model import LatentDiffusion
from latentworks.objectives.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from latentworks.random import generator
from latentworks.train import TrainConfig, make_accelerator, train
from latentworks.types import Batch
from latentworks.unet import UNet, UNetConfig

SIDE = 16


class Discs:
    """Endless discs; the disc of an index is always the same."""

    def indices_for(self, step: int, batch: int) -> list[int]:
        return list(range(step * batch, (step + 1) * batch))

    def batch(self, indices: list[int], step: int) -> Batch:
        images = torch.stack([self.disc(index) for index in indices])
        return {"image": images, "label": torch.tensor(indices) % 2, "index": torch.tensor(indices)}

    def disc(self, index: int) -> torch.Tensor:
        y, x, size = torch.rand(3, generator=generator("disc", index)).tolist()
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        inside = (rows - 4 - 8 * y) ** 2 + (columns - 4 - 8 * x) ** 2 < (2 + 3 * size) ** 2
        colour = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]][index % 2])  # red and blue
        return torch.where(inside, colour[:, None, None], torch.tensor(1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps

    label = LabelConditioner(LabelConfig(classes=2, width=64))
    unet = UNet(UNetConfig(channels=32, multipliers=(1, 2), attention=(2,)), channels=3, gives=label.gives)
    model = LatentDiffusion(IdentityFirstStage(IdentityConfig()), unet, Process(ProcessConfig(prediction="v")), [label])
    objective, config = DiffusionObjective(DiffusionObjectiveConfig(), model), TrainConfig(steps=steps, batch=32, lr=1e-3, ema=0.99)
    for stepped in train(objective, Discs(), config, accelerator=make_accelerator(config)):
        if stepped.step % 50 == 0:
            print(f"step {stepped.step}  loss {float(stepped.log['loss']):.4f}")

    with stepped.state.averaged(), torch.no_grad():
        cond = model.condition({"label": torch.tensor([0] * 4 + [1] * 4)})
        noise, timesteps = torch.randn(8, 3, SIDE, SIDE, generator=generator("start")), model.process.timesteps(20, "trailing")
        *_, last = SAMPLERS["dpmpp_2m"](lambda x, t: model.predict(x, t, cond), noise, model.process, timesteps, torch.randn_like)
    save_sheet(Path("discs.png"), sheet([Image.fromarray(pixels) for pixels in from_tensor(last.x)], columns=4, scale=4))


if __name__ == "__main__":
    main()
