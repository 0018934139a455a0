"""The README.md of a model folder: what the model is, how it was trained, what it was measured at, and whose images it learned from."""

from pathlib import Path

from latentworks.recipe import NOUNS, DiffusionRecipe, Recipe

__all__ = ["model_card"]


def hub_task(recipe: Recipe) -> str | None:
    """What the hub calls the model's task: by its first condition that the hub has a name for; None for others and for first stages."""
    if not isinstance(recipe, DiffusionRecipe):
        return None
    names = {"text": "text-to-image", "frozen_text": "text-to-image"}
    names |= dict.fromkeys(("segmentation", "low_res", "masked_image"), "image-to-image")
    found = [names[c.kind] for c in recipe.conditioners if c.kind in names]
    return found[0] if found else None if recipe.conditioners else "unconditional-image-generation"


def model_card(recipe: Recipe, step: int, held_out: dict[str, float], data: Path) -> str:
    """Markdown with the hub's front matter; the data's ATTRIBUTION.txt, if it has one, is quoted, as its licence asks."""
    attribution = data / "ATTRIBUTION.txt"
    task = hub_task(recipe)
    front = ["---", "library_name: latentworks", *([f"pipeline_tag: {task}"] if task else []), "---"]
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
