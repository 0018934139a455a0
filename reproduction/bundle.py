"""Make a bundled model of a trained one: weights in float16, a card with its measured figures, its audit and its licence.

The model's card takes its tables from `benchmarks/results`: those of captions, of the sweep and of what was compared before the run, or of
emoji of 128 px. With ``--decoder`` a bundle gets another decoder of the same latents. A bundle is measured in float16 and bundled again
with its new figures; it draws with the settings that its recipe has now.

    python reproduction/bundle.py runs/openmoji-64 openmoji --card reproduction/bundled-model/openmoji-64.json
    python reproduction/bundle.py runs/openmoji-128 openmoji128
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mode
from typing import Any

import torch

from latentworks.checkpoints.native import load_folder, save_folder
from latentworks.checkpoints.resolve import resolve_model
from latentworks.metrics.card import read_card
from latentworks.model import LatentDiffusion
from latentworks.preparation import load_first_stage
from latentworks.recipes import get_recipe

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FRONT = "---\nlibrary_name: latentworks\npipeline_tag: text-to-image\nlicense: cc-by-sa-4.0\n---\n"
HEADING = "\n## What it is for, and what not\n"
DRAWS = """
It shows what the software does: small emoji-like pictures from names such as "woman astronaut with dark skin tone". It learned from 3,667
pictures on two processor cores: its first stage in about 18 minutes, its text in 8, the diffusion model in five and a half hours, its
decoder in three, to see past what the diffusion model gets wrong. It knows emoji by the names it read, largely by heart: the audit below
says how many of its samples are copies. People in a skin tone it never saw them in succeed more often than not; other names of the same
emoji, and anything outside the data, often fail.
Compare its figures with those of its first stage and of real held-out images below, not with published FIDs: the feature network is another
one.
"""
ENLARGES = """
It makes emoji twice as large: what `openmoji-64` draws (`lw sample openmoji-64 "cat" --enlarge openmoji-128`), or a picture
(`--upscale`). It learned from 4,187 emoji of 128 px, made small bicubically, on one core in 12 minutes; its first stage is that of
`openmoji-64`. It draws the edges that a small picture cannot show and mends nothing: a shape that `openmoji-64` gets wrong stays wrong. It
has seen emoji on white alone, no photographs.
"""

CAPTIONS = """## Does it draw what is asked for (`benchmarks/captions.py`)

Whether the nearest of all real emoji, by the features of the network above less their mean, is the one that was named, or one of the five
nearest is: for captions it trained on ("known"), for other names of the same emoji ("unused"); and for people in skin tones that training
never showed, whether it is this person, in this tone. These features see little of colour, so "tone by colour" looks at that of the skin.
What the text understands is the row of the latent likest to the caption, by what text and latents learned of each other; nothing is drawn.
"""
COMPARISON = """## What was compared before (`benchmarks/comparison.py`)

One change each of the first recipe with Muon ("base": text transformer of 4 layers, v, first stage KL, f = 4, 4 channels), 30 minutes of
one core, or as many steps as base took in them; a second seed where rows are close. Distances of 500 samples, which are higher than those
of more; captions as above, fewer. Images/s compare with rows drawn on the same processor.

Rows compare where the decoder is the same. "first" and "second" are those of the first two bundled models, "openmoji-64" is the present
one: each learned on less noise than the one before, and so draws worse what a net makes of half an hour, which is far off. Base, trained
once and drawn through all three, has 61.2 (its row, of an earlier run, says 60.5), 67.4 and 73.9. "own" are decoders of first stages that
a variant has of its own, of 3,000 steps; those of f = 4 compare with "KL, f = 4, 4 channels".

Two seeds of one variant are up to six apart (through the second decoder base also had 68.9, x0 67.9 with seed 1, whose captions were not
kept). So v, x0, min-SNR and zero terminal SNR are not told apart by distance, nor are KL and VQ; by captions min-SNR is worse than the
others with both seeds.
"""


SWEEP = """## Samplers, steps and guidance (`benchmarks/sweep.py`)

Fréchet distance of {n} samples, the same captions and seeds everywhere, to all training images: lower is better, and higher than with more
samples. First by sampler and number of steps at guidance {guidance}, then by guidance with the model's own sampler and steps ({precision}).
"""


ENLARGED = """## What its pictures are worth (`benchmarks/emoji_128.py`)

Fréchet distance of {n} pictures to all captioned training images of 128 px; how often the emoji named is the nearest to its picture, or
among the five nearest, for captions without a skin tone; pictures a second from the caption to 128 px, on one core ({precision}). It takes
its own {steps} steps where no other number stands. "Fine-tuned at 128 px" is `openmoji-64` itself, trained further at that size.
"""


def measured(name: str, figures: Path | None) -> str:
    """The card's sections on what was measured of this model, and on the way to it."""
    if name == "openmoji-128":
        result = _result("emoji_128")
        facts = ENLARGED.format(n=result["n"], precision=result["precision"], steps=get_recipe(name).sampling.steps)
        return f"{facts}\n{_whole(result['rows'])}\n"
    sections = []
    if figures is not None:
        sections += [read_card(figures).markdown().replace("# Evaluation of", "## Measured: `lw evaluate` of").replace("\n## ", "\n### ")]
    captions, sweep, comparison = (_result(name) for name in ("captions", "sweep", "comparison"))
    sections += [f"{CAPTIONS}\n{_whole(captions['rows'])}\n"] if captions else []
    sections += [_swept(sweep)] if sweep else []
    sections += [f"{COMPARISON}\n{_whole(comparison['rows'])}\n"] if comparison else []
    return "\n".join(sections)


def _result(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}  # type: ignore[no-any-return]


def _swept(result: dict[str, Any]) -> str:
    """Both tables of a sweep. The guidance of most rows is that of the table of steps."""
    rows = result["rows"]
    guidance = mode(row["guidance"] for row in rows)
    distance = {(row["sampler"], row["steps"]): row["distance"] for row in rows if row["guidance"] == guidance}
    samplers, counts = (sorted(dict.fromkeys(key[place] for key in distance)) for place in (0, 1))
    steps = [{"sampler": name, **{f"{count} steps": distance.get((name, count), "") for count in counts}} for name in samplers]
    own = next(row for row in rows if row["guidance"] != guidance)
    scales = [row for row in rows if (row["sampler"], row["steps"]) == (own["sampler"], own["steps"])]
    scales = [
        {key: row[key] for key in ("guidance", "distance", "first", "top 5")} for row in sorted(scales, key=lambda row: row["guidance"])
    ]
    return "\n".join([SWEEP.format(n=result["n"], guidance=guidance, precision=result["precision"]), _whole(steps), "", _whole(scales), ""])


def _whole(rows: Sequence[dict[str, Any]]) -> str:
    """All figures of all rows, as a table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, [":--"] + ["--:"] * (len(columns) - 1), *cells))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write src/latentworks/bundled/NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run, or the bundle itself")
    parser.add_argument("data", type=Path, help="the folder of images it learned from, whose LICENSE.txt goes along")
    parser.add_argument("--card", type=Path, help="what `lw evaluate --json` wrote for it")
    parser.add_argument("--name", help="of the recipe it is a run of, where the run goes by another")
    parser.add_argument("--decoder", help="a first stage whose decoder it gets")
    arguments = parser.parse_args()
    folder = resolve_model(arguments.run)
    model, recipe = load_folder(folder)
    assert isinstance(model, LatentDiffusion)
    name = arguments.name or recipe.name
    recipe = recipe.replace(name=name, sampling=get_recipe(name).sampling.model_dump())
    if arguments.decoder is not None:
        model.first_stage.take_decoder(load_first_stage(arguments.decoder))
    card = (folder / "README.md").read_text().split("---\n", 2)[2]
    facts, attribution = card.split("\n## Training images\n")
    facts = f"\n# {name}\n" + facts.split(HEADING)[0].split("\n", 2)[2]  # of a bundle only what a run's card has
    about, front = (DRAWS, FRONT) if name == "openmoji-64" else (ENLARGES, FRONT.replace("text-to-image", "image-to-image"))
    text = f"{front}{facts.rstrip()}\n{HEADING}{about}\n{measured(name, arguments.card)}\n## Training images\n{attribution}"
    target = Path(__file__).parents[1] / "src" / "latentworks" / "bundled" / name
    save_folder(target, model, recipe, text, torch.float16)
    shutil.copy(arguments.data / "LICENSE.txt", target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
