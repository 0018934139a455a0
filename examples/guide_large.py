"""A small sample guides a large one (Fig. 14, arXiv:2112.10752): the bundled model draws 64 px without a prompt, then 128 px, its double.

Convolutional sampling alone loses the whole at that size. Guided, its reduction follows the small sample; `guide_large.png` shows the small
ones, the large ones without guidance and the large ones with it. What each denoiser adds, it adds to the one below.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import latentworks as lw
from latentworks.data.transforms import from_tensor
from latentworks.diffusion.guidance import classifier_free, image
from latentworks.diffusion.samplers import SAMPLERS
from latentworks.grids import save_sheet, sheet
from latentworks.image_guidance import ImageGuidanceConfig, image_loss
from latentworks.random import randn_like_per_image
from latentworks.types import Denoise

SEEDS = range(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=1.0, help="of the image guidance")
    parser.add_argument("--prompt", default="", help="classifier-free guidance by it, below that of the image")
    options = parser.parse_args()

    model = lw.load_model("openmoji-64")

    def draw(denoise: Denoise, side: int) -> Tensor:
        latent = (len(SEEDS), model.first_stage.channels, side // model.first_stage.factor, side // model.first_stage.factor)
        noise, timesteps = randn_like_per_image("start", SEEDS)(torch.empty(latent)), model.process.timesteps(options.steps, "trailing")
        *_, last = SAMPLERS["ddim"](denoise, noise, model.process, timesteps, torch.randn_like)
        return model.first_stage.decode(last.x)

    with torch.no_grad():
        cond, none = (model.condition({"text": [text] * len(SEEDS)}) for text in (options.prompt, ""))
        plain = classifier_free(model.predict, cond, none, 3.0 if options.prompt else 1.0)
        small = draw(plain, 64)
        loss = image_loss(ImageGuidanceConfig(guide="down"), model.first_stage, small, (128, 128))
        rows = {"64 px": small, "128 px": draw(plain, 128), "guided": draw(image(plain, loss, model.process, options.scale), 128)}
    pictures = [Image.fromarray(pixels).resize((128, 128)) for images in rows.values() for pixels in from_tensor(images)]
    save_sheet(Path("guide_large.png"), sheet(pictures, [name for name in rows for _ in SEEDS], columns=len(SEEDS)))


if __name__ == "__main__":
    main()
