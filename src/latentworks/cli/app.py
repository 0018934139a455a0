"""The `lw` command: imports stay inside commands so that `lw --help` is quick."""

import typer

from latentworks.cli import audit, convert, data, inspect, measure, plan, report, sample, train

__all__ = ["app"]

app = typer.Typer(
    name="lw",
    help="Latentworks: turn a folder of your own images into a latent diffusion model, sample it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
for command in (
    train.train, train.encode, sample.sample, sample.demo, measure.evaluate, audit.audit, report.report, convert.convert,
    inspect.info, plan.plan, inspect.doctor,
):  # fmt: skip
    app.command()(command)
