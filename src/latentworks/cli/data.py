"""`lw data`: get the demonstration data, check a folder."""


import typer

__all__ = ["app"]

app = typer.Typer(help="Get and check data.", no_args_is_help=True, rich_markup_mode=None)
