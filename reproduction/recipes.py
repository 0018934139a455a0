"""Writes docs/recipes.md: every recipe with its parameters beside the authors' and the paper's."""

from pathlib import Path

import torch

from latentworks.costs.count import parameters
from latentworks.costs.rehearsal import Rehearsal
from latentworks.recipes import RECIPES
from latentworks.recipes.published import PUBLISHED, unused_output

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
HEAD = """# Recipes

Written by `python reproduction/recipes.py`; `lw info RECIPE` says more about one, `lw plan RECIPE` what it needs. Parameters are in
millions: ours, counted on PyTorch's meta device, then in brackets what the authors' classes and YAML files come to, counted alike. Their
text and layout transformers have an output layer that nothing uses; it is in their figures and, after a plus sign, beside ours.

| Recipe | What it is | Latent | First stage | UNet | Conditioners | The paper |
|---|---|---|---:|---:|---:|---|
"""


def row(name: str) -> str:
    recipe, published = RECIPES[name](), PUBLISHED.get(name)
    what = (RECIPES[name].__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
    with torch.device("meta"):
        latent = " x ".join(map(str, Rehearsal(recipe).latent))
    ours, unused = parameters(recipe), unused_output(recipe)
    cells = []
    for part in ("first_stage", "unet", "conditioners"):
        count = ours.get(part, ours.get("net", 0) if part == "unet" else 0) / 1e6  # of a classifier, half a UNet
        compared = published is not None and part in published.code
        more = f" + {unused / 1e6:.2f}" if compared and unused and part == "conditioners" else ""
        code = f" ({published.code[part]:.2f})" if compared else ""
        cells.append(f"{count:.2f}{more}{code}" if count else "")
    paper = f"{published.printed}, {published.table}" if published and published.printed else ""
    return " | ".join([f"| `{name}`", what, latent, *cells, f"{paper} |"])


if __name__ == "__main__":
    PAGE.write_text(HEAD + "\n".join(row(name) for name in RECIPES) + "\n", encoding="utf-8")
    print("written to", PAGE)
