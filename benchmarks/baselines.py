"""Trains what restoration by diffusion is compared with: a regression network of the same size, data, settings and time as a model.

For a super-resolution model it is the model's own UNet, on the small image and without steps, trained with L1 to give the large one. For an
inpainting model it is built of fast Fourier convolutions, as wide as gives it as many parameters, and trained with L1 within the hole. The
model (`--like`) is a model folder of ours: its UNet sets the size, its recipe says how images are prepared and which optimiser is used. How
many steps fit into `--minutes` is measured first, so that the learning rate falls to its end.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from regressors import InpainterConfig, Regressor, SuperResolver, SuperResolverConfig, build, save, size, width_for
from restoration import recipe_of
from torch import Tensor

from latentworks.completion import extras_of
from latentworks.conditioners import LowResConfig, MaskedImageConfig
from latentworks.data.dataset import ImageDataset
from latentworks.data.sources import FolderSource
from latentworks.objectives.base import Loss, Objective
from latentworks.pipeline import load_model
from latentworks.recipe import DiffusionRecipe
from latentworks.train import State, TrainConfig, make_accelerator, train
from latentworks.types import Batch

FOLDER = Path(__file__).parent / "baselines"
WARM_UP, TIMED = 2, 10  # steps before and while the speed is measured


class Regression(Objective):
    """L1 to the image itself: over all of it, or over its hole."""

    best = "l1"
    averaged = ("network",)

    def __init__(self, network: Regressor) -> None:
        self.config, self.modules = network.config, {"network": network}

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        """One loss."""
        value = self._distance(batch)
        yield Loss(value, ("network",), {"l1": value.detach()})

    def held_out(self, batches: Sequence[Batch]) -> dict[str, float]:
        """The mean over the batches."""
        return {"l1": float(torch.stack([self._distance(batch) for batch in batches]).mean())}

    def _distance(self, batch: Batch) -> Float[Tensor, ""]:
        image = batch["image"]
        if isinstance(self.config, SuperResolverConfig):
            return (self.modules["network"](batch["low_res"]) - image).abs().mean()
        error = (self.modules["network"](image, batch["mask"]) - image).abs()
        return error.sum() / (batch["mask"].sum() * image.shape[1])


def fitted(recipe: DiffusionRecipe, parameters: int, channels: int) -> Regressor:
    """The network for a model of so many trained parameters. Raises: ValueError if it restores nothing."""
    for config in recipe.conditioners:
        match config:
            case LowResConfig():
                return build(SuperResolverConfig(unet=recipe.unet, channels=channels, factor=config.factor, degradation=config.degradation))
            case MaskedImageConfig():
                return build(width_for(parameters, InpainterConfig(width=8, channels=channels, groups=recipe.unet.groups)))
    raise ValueError(f"--like: {recipe.name} neither enlarges nor inpaints: give a model that does")


def steps_for(objective: Regression, data: ImageDataset, config: TrainConfig, minutes: float) -> int:
    """How many steps take so long, by the speed of the first ones, which are thrown away."""
    before = {key: value.clone() for key, value in objective.modules["network"].state_dict().items()}
    steps = train(objective, data, config.replace(steps=WARM_UP + TIMED), accelerator=make_accelerator(config))
    for _ in range(WARM_UP):
        next(steps)
    began = time.perf_counter()
    for _ in range(TIMED):
        next(steps)
    seconds = (time.perf_counter() - began) / TIMED
    objective.modules["network"].load_state_dict(before)
    return max(1, round(60 * minutes / seconds))


def run(options: argparse.Namespace) -> Path:
    """Train one baseline and write its folder."""
    recipe, model = recipe_of(options.like), load_model(options.like)
    trained = size(model.unet) + size(model.conditioners)
    source = FolderSource(options.data, split="train", channels=recipe.data.channels)
    torch.manual_seed(options.seed)
    network = fitted(recipe, trained, source.channels)
    print(f"{size(network):,} parameters; those trained of {options.like}: {trained:,}")
    data = ImageDataset(source, recipe.data, options.seed, extras=extras_of(recipe.conditioners))
    for _ in data.load():  # else the speed would be that of reading files
        pass
    objective = Regression(network)
    config = recipe.train.replace(steps=steps_for(objective, data, recipe.train, options.minutes), seed=options.seed)
    began, state = time.perf_counter(), State(objective, config)
    for stepped in train(objective, data, config, accelerator=make_accelerator(config)):
        state = stepped.state
        if stepped.step % max(1, config.steps // 20) == 0:
            print(f"step {stepped.step}/{config.steps}  l1 {float(stepped.log['l1']):.4f}", flush=True)
    facts = {
        "like": Path(options.like).name,
        "data": options.data.resolve().name,
        "images": len(source),
        "steps": config.steps,
        "batch": config.batch,
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "seed": options.seed,
        "parameters_of_the_model": trained,
    }
    with state.averaged():
        name = f"super-resolution-{network.config.degradation}" if isinstance(network, SuperResolver) else "inpainting"
        return save(options.out / name, network, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, help="the model it will be compared with: a model folder, run folder or bundled name")
    parser.add_argument("--data", type=Path, required=True, help="the folder of images that model was trained on")
    parser.add_argument("--minutes", type=float, required=True, help="training time of that model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: benchmarks/baselines")
    print("written to", run(parser.parse_args()))


if __name__ == "__main__":
    main()
