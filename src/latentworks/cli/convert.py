"""`lw convert`."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A checkpoint (.ckpt, .safetensors) of the LDM authors or Stable Diffusion 1.x, a diffusers folder or its hub id, a model "
            "folder, a run folder, or a bundled model's name.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a .ckpt or .safetensors file for --to compvis.")],
    to: Annotated[str, typer.Option(help="native (a model folder), compvis (the authors' layout) or diffusers.")] = "native",
    config: Annotated[Path | None, typer.Option(help="The checkpoint's YAML. Default: NAME.yaml beside it, else by its weights.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the raw weights where the checkpoint has averaged ones too.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A value of the YAML, e.g. num_heads=8. Without one you are told which are needed.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="For checkpoints of text models: tokenizer.json, vocab.json, vocab.txt (bert-base-uncased), or their folder."),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a hub, even if IN is the id of a model there.")] = False,
) -> None:
    """Turn a model of one layout into another.

    Example: lw convert model.ckpt celeba --config config.yaml && lw sample celeba
    """
    from latentworks.checkpoints.convert import open_model, write_model

    opened = open_model(source, config, not raw, _settings(settings or []), vocabulary, offline)
    notes = [*opened.notes, *write_model(opened, out, to, source)]
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    typer.echo(f"{out}: {opened.recipe.name}, {parameters / 1e6:.1f} M parameters, {opened.recipe.data.out_size} px")


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Values by name. Raises: ValueError for one that is not KEY=VALUE."""
    from latentworks.config import merge

    names = [pair.partition("=")[0] for pair in pairs]
    return merge(dict.fromkeys(names), pairs)
