"""Training speed: our loop against diffusers' own, for networks of equal shape and size, in one run.

Ours is `latentworks.train.train` as `lw train` runs it: cached moments, posterior sample, noise by name, clipping, AdamW, EMA,
precision auto. Theirs is the loop of diffusers' example `train_unconditional.py` with `--use_ema`, its data already in memory as latents:
UNet2DModel, DDPMScheduler, AdamW, clipping, EMAModel. Its default precision is float32 ("no"); the bf16 row is `--mixed_precision bf16`.

The variants take turns (A B C A B C ...), since the speed of a machine drifts: a ratio is the median over rounds of the ratio within one.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from record import save, table
from torch import Tensor, nn

from latentworks.diffusion.process import Process, ProcessConfig
from latentworks.first_stage import KLConfig, build_first_stage
from latentworks.model import LatentDiffusion
from latentworks.objectives.diffusion import DiffusionObjective, DiffusionObjectiveConfig
from latentworks.train import TrainConfig, make_accelerator, train
from latentworks.types import Batch, Gives
from latentworks.unet import UNet, UNetConfig

IMAGES, CHANNELS, SIDE = 2048, 4, 16
WARM_UP = 2
CLAIM = 1.6


class Moments:
    """Random posterior moments in place of a latent cache."""

    def __init__(self) -> None:
        self.raw = torch.randn(IMAGES, 2 * CHANNELS, SIDE, SIDE)

    def indices_for(self, step: int, batch: int) -> list[int]:
        return [i % IMAGES for i in range(step * batch, (step + 1) * batch)]

    def batch(self, indices: list[int], step: int) -> Batch:
        return {"index": torch.tensor(indices), "raw": self.raw[indices]}


def our_loop(batch: int) -> tuple[int, Iterator[object]]:
    """Parameters trained, and our loop: every ``next`` is a step."""
    first_stage = build_first_stage(KLConfig(channels=32, multipliers=(1, 2, 2), blocks=1, latent_channels=CHANNELS))
    first_stage.set_statistics(torch.zeros(CHANNELS), torch.ones(()))
    unet = UNet(UNetConfig(channels=64, multipliers=(1, 2, 3), blocks=2, attention=(2, 4)), CHANNELS, Gives())
    objective = DiffusionObjective(DiffusionObjectiveConfig(), LatentDiffusion(first_stage, unet, Process(ProcessConfig())))
    config = TrainConfig(steps=1_000_000, batch=batch, precision="auto")
    return _size(unet), train(objective, Moments(), config, accelerator=make_accelerator(config))


def their_loop(batch: int, precision: str) -> tuple[int, Iterator[object]]:
    """The same for diffusers' example loop, with its default settings."""
    accelerator = Accelerator(mixed_precision=precision)
    unet = UNet2DModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=(64, 128, 192),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = get_scheduler("cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=1_000_000)
    return _size(unet), _their_steps(batch, accelerator, ema, *accelerator.prepare(unet, optimiser, schedule))


def _their_steps(
    batch: int,
    accelerator: Accelerator,
    ema: EMAModel,
    unet: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Iterator[float]:
    latents, noise_scheduler = torch.randn(IMAGES, CHANNELS, SIDE, SIDE), DDPMScheduler(num_train_timesteps=1000)
    unet.train()
    for step in itertools.count():
        clean = latents[[i % IMAGES for i in range(step * batch, (step + 1) * batch)]]
        noise: Tensor = torch.randn(clean.shape)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (batch,))
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(noisy, timesteps).sample.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        ema.step(unet.parameters())
        yield loss.detach().item()


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def measure(batch: int, rounds: int, steps: int) -> list[dict[str, object]]:
    """One row a variant: images/s of every round and the ratio to diffusers' default."""
    builders = {
        "diffusers, float32 (its default)": lambda: their_loop(batch, "no"),
        "diffusers, bf16": lambda: their_loop(batch, "bf16"),
        "latentworks, auto": lambda: our_loop(batch),
    }
    loops, sizes = {}, {}
    for name, build in builders.items():
        AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process; ours reads it at every step, so is last
        sizes[name], loops[name] = build()
        for _ in range(WARM_UP):
            next(loops[name])
    assert max(sizes.values()) <= 1.01 * min(sizes.values()), sizes
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            began = time.perf_counter()
            for _ in range(steps):
                next(loop)
            speeds[name].append(batch * steps / (time.perf_counter() - began))
    baseline = speeds["diffusers, float32 (its default)"]
    return [
        {
            "batch": batch,
            "loop": name,
            "parameters": sizes[name],
            "images_per_second": [round(speed, 2) for speed in each],
            "ratio_per_round": [round(ours / theirs, 3) for ours, theirs in zip(each, baseline, strict=True)],
            "ratio": round(statistics.median(ours / theirs for ours, theirs in zip(each, baseline, strict=True)), 3),
        }
        for name, each in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64], help="batch sizes (default: 32 64)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the variants take turns (default: 5)")
    parser.add_argument("--steps", type=int, default=5, help="steps of each variant in a round (default: 5)")
    options = parser.parse_args()
    rows = [row for batch in options.batches for row in measure(batch, options.rounds, options.steps)]
    lines = []
    for row in rows:
        speeds, ratios = row["images_per_second"], row["ratio_per_round"]
        lines.append(
            [
                row["loop"],
                str(row["batch"]),
                f"{row['parameters'] / 1e6:.2f} M",
                f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})",
                f"{row['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        )
    print(table(["loop", "batch", "parameters", "images/s: median (range)", "x diffusers' default: median (range)"], lines))
    ours = [row for row in rows if row["loop"].startswith("latentworks")]
    verdicts = [f"batch {row['batch']}: {'yes' if row['ratio'] >= CLAIM else 'NO'}" for row in ours]
    print(f"\nat least {CLAIM} x diffusers' default loop: {', '.join(verdicts)}")
    print("written to", save("training_speed", rows, rounds=options.rounds, steps_per_round=options.steps))


if __name__ == "__main__":
    main()
