"""Run every `lw sample models/..` command of docs/tasks/*.md and put its picture beside the page: what was given, then what was drawn.

python reproduction/task_pictures.py            all pages
python reproduction/task_pictures.py layout     one of them
"""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from PIL import Image

from latentworks.cli import main as lw
from latentworks.data.masks import draw_mask
from latentworks.data.palette import class_colours, paint
from latentworks.data.scenes import write_scenes
from latentworks.grids import boxes_picture, save_sheet, sheet

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tasks"
SEED = 1001  # of scenes no model was trained on
SIDE = 128


def main() -> None:
    """Pictures of the pages named, or of all."""
    os.chdir(ROOT)
    inputs()
    for page in sorted(PAGES.glob("*.md")):
        commands = re.findall(r"^lw sample (models/.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        if commands and (len(sys.argv) < 2 or page.stem in sys.argv[1:]):
            rows = [given(words) + drawn(words) for words in map(shlex.split, commands)]
            columns = max(map(len, rows))
            blank = Image.new("RGB", (SIDE, SIDE), "white")
            save_sheet(
                page.with_suffix(".png"), sheet([image for row in rows for image in (row + [blank] * columns)[:columns]], columns=columns)
            )
            print(page.with_suffix(".png").relative_to(ROOT))


def inputs() -> None:
    """What the commands are given, made of one scene; files that are there stay."""
    if (PAGES / "scene.png").exists():
        return
    with TemporaryDirectory() as folder:
        list(write_scenes(Path(folder) / "scenes", SIDE, n=1, seed=SEED, categories=24))
        table = json.loads((Path(folder) / "scenes" / "instances.json").read_text(encoding="utf-8"))
        names = {kind["id"]: kind["name"] for kind in table["categories"]}
        boxes = [
            dict(
                zip(("x", "y", "width", "height"), (round(value / SIDE, 4) for value in row["bbox"]), strict=True),
                label=names[row["category_id"]],
            )
            for row in table["annotations"]
        ]
        (PAGES / "boxes.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")
        with (
            Image.open(Path(folder) / "scenes" / "images" / "000000.png") as scene,
            Image.open(Path(folder) / "scenes" / "labels" / "000000.png") as labels,
        ):
            scene.save(PAGES / "scene.png")
            scene.resize((SIDE // 4, SIDE // 4), Image.Resampling.BICUBIC).save(PAGES / "small.png")
            labels.save(PAGES / "labels.png")
    Image.fromarray(draw_mask(SIDE, SIDE, np.random.default_rng(SEED))).save(PAGES / "mask.png")


def given(words: list[str]) -> list[Image.Image]:
    """The files of a command as pictures."""
    pictures = []
    for word in words:
        if word.endswith(".json"):
            pictures.append(boxes_picture(json.loads(Path(word).read_text(encoding="utf-8")), SIDE))
        elif word.endswith("labels.png"):
            pictures.append(shown(Image.fromarray(paint(np.asarray(Image.open(word)).astype(int), class_colours(256)))))
        elif word.endswith(".png"):
            pictures.append(shown(Image.open(word)))
    return pictures


def drawn(words: list[str]) -> list[Image.Image]:
    """The images a command draws, in order."""
    with TemporaryDirectory() as out:
        with patch.object(sys, "argv", ["lw", "sample", *words, "-o", out]):
            try:
                lw()
            except SystemExit as stop:
                if stop.code:
                    raise
        return [shown(Image.open(path)) for path in sorted(Path(out).iterdir(), key=lambda path: path.stat().st_mtime_ns)]


def shown(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
