"""First stages on the same images: what each loses. The price of one that was trained on other data is a line of the table.

A first stage is given by its own folder or by that of a model in its latents; the images are the held-out part of a folder, prepared as
`scenes-ae`'s were. Reconstructions are of the posterior's mode.

    python benchmarks/first_stages.py models/scenes-ae openmoji-64 --data scenes
"""

import argparse
from pathlib import Path

from record import save, table

from latentworks.metrics.evaluate import evaluate_first_stage
from latentworks.metrics.features import Lite0Features
from latentworks.metrics.measurement import Evaluation
from latentworks.metrics.reference import reference_images
from latentworks.preparation import load_first_stage
from latentworks.recipes import get_recipe

SHOWN = ("PSNR of reconstructions", "SSIM of reconstructions", "Fréchet distance of reconstructions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="first stages, or models in their latents")
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    options = parser.parse_args()
    reference, rows = reference_images(options.data, get_recipe("scenes-ae"), "held_out"), []
    for name in options.models:
        *_, last = evaluate_first_stage(load_first_stage(name), reference, Lite0Features())
        assert isinstance(last, Evaluation)
        rows.append({"first stage": Path(name).name} | {figure.name: figure.value for figure in last.measurements})
    print(table(["first stage", *SHOWN], [[row["first stage"], *(f"{row[name]:.3f}" for name in SHOWN)] for row in rows]))
    print("\nwritten to", save("first_stages", rows, reference=reference.name, images=len(reference.source)))


if __name__ == "__main__":
    main()
