"""The README.md of a model folder: what the model is, how it was trained, what it was measured at, and whose images it learned from."""

from pathlib import Path

from latentworks.recipe import NOUNS, DiffusionRecipe, Recipe

__all__ = ["model_card"]


def model_card(recipe: Recipe, step: int, held_out: dict[str, float], data: Path) -> str:
    """Markdown with the hub's front matter; the data's ATTRIBUTION.txt, if it has one, is quoted, as its licence asks."""
    attribution = data / "ATTRIBUTION.txt"
    kind = "unconditional-image-generation"
    if isinstance(recipe, DiffusionRecipe) and any(c.kind in ("text", "frozen_text") for c in recipe.conditioners):
        kind = "text-to-image"
    front = ["---", "library_name: latentworks"] + ([f"pipeline_tag: {kind}"] if isinstance(recipe, DiffusionRecipe) else []) + ["---"]
    train, size = recipe.train, recipe.data.out_size
    optimiser = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon"}[train.optimiser] + f" at learning rate {train.lr}"
    what = f"A {NOUNS[recipe.kind]} trained with Latentworks."
    lines = [
        *front, "", f"# {recipe.name}", "", what, "",
        f"- {recipe.data.size} px, {recipe.data.channels} channels, trained on {size} x {size}",
        f"- {step} of {train.steps} steps of {train.batch * train.accumulate} images, {optimiser}, EMA {train.ema}",
        "- the complete settings are in `recipe.json`",
    ]  # fmt: skip
    if held_out:
        shown = ", ".join(f"{key} {value:.4g}" for key, value in held_out.items() if "_t" not in key)
        lines += ["", "## Held-out figures at this step", "", shown]
    if attribution.is_file():
        lines += ["", "## Training images", "", attribution.read_text(encoding="utf-8", errors="replace").strip()]
    return "\n".join(lines) + "\n"
