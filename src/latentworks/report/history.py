"""How a run went, as charts: every figure over the steps, and losses by bucket of steps of the process."""

import re
from collections.abc import Sequence

from latentworks.report.blocks import Block, Chart, Charts, Table, Text
from latentworks.report.charts import POINTS, RAMP, Curve, Scale, chart
from latentworks.report.run import Points, Run
from latentworks.train import learning_rate

__all__ = ["buckets", "curves"]

_MEANINGS = {
    "loss": ("Loss", "what is minimised"),
    "loss_simple": ("Unweighted loss", "the error of the network's output, a mean over steps"),
    "caption_accuracy": ("Captions found", "share of latents whose own caption is the likest of the batch"),
    "accuracy": ("Accuracy", "share of noisy latents whose class is found"),
    "reconstruction": ("Reconstruction", "pixel error and weighted perceptual distance"),
    "l1": ("L1", "mean absolute error of images in [-1, 1]"),
    "l2": ("L2", "mean squared error of images in [-1, 1]"),
    "psnr": ("PSNR", "dB, a mean over held-out images; higher is better"),
    "perceptual": ("Perceptual distance", "by the features of a network"),
    "nll": ("Negative log-likelihood", "the reconstruction, summed or averaged as the objective says"),
    "regulariser": ("Regulariser", "KL: divergence from a standard normal; VQ: codebook and commitment loss"),
    "adversarial": ("Adversarial loss", "of the autoencoder; negative where the discriminator takes reconstructions for real"),
    "adversarial_weight": ("Adversarial weight", "the adaptive one times its setting"),
    "discriminator": ("Discriminator's loss", ""),
    "discriminator_right": ("Discriminator is right", "share of images; one half is guessing"),
    "logits_real": ("Logits of real images", ""),
    "logits_fake": ("Logits of reconstructions", ""),
    "codebook_use": ("Codes in use", "share of the codebook"),
    "images_per_second": ("Throughput", "images a second, all processes"),
    "peak_memory_gib": ("Peak memory", "GiB, highest resident size so far"),
}
"""Title and meaning of what our objectives log; other figures are called as they are."""

_LAST = ("images_per_second", "peak_memory_gib")
_GRADIENT = "grad_norm/"
_BUCKET = re.compile(r"(.+)_t(\d+)")


def curves(run: Run) -> list[Block]:
    """Every figure over the steps, that of training beside that of held-out images; the learning rate is the recipe's."""
    if not run.trained and not run.held_out:
        return []
    names = [name for name in dict.fromkeys([*_MEANINGS, *run.held_out, *run.trained]) if _shows(run, name)]
    charts = [_figure(run, name) for name in names if name not in _LAST]
    if gradients := {name: points for name, points in run.trained.items() if name.startswith(_GRADIENT)}:
        lines = [Curve(name.removeprefix(_GRADIENT), points, i) for i, (name, points) in enumerate(gradients.items())]
        charts.append(_chart(run, lines, "Gradient norm", "before clipping" if run.recipe.train.clip else "not clipped"))
    if run.step:
        steps = sorted({round(i * (run.step - 1) / (POINTS - 1)) for i in range(POINTS)})
        rate = [(step, learning_rate(run.recipe.train, step)) for step in steps]
        charts.append(_chart(run, [Curve("learning rate", rate)], "Learning rate", "by the recipe", log_y=False))
    charts += [_figure(run, name) for name in names if name in _LAST]
    longest = max((len(points) for series in (run.trained, run.held_out) for points in series.values()), default=0)
    thinned = f" Of more than {POINTS} values means of neighbours are drawn." if longest > POINTS else ""
    means = f"Training: means over the {run.recipe.intervals.log} steps before. Held out: fixed images and noise, averaged weights."
    return [Text(means + thinned), Charts(charts)]


def _shows(run: Run, name: str) -> bool:
    """Whether a figure is worth a chart here: not those of buckets, gradients, or that only repeat the loss."""
    if name not in run.trained and name not in run.held_out:
        return False
    repeats = name == "loss_simple" and run.trained.get("loss_simple") == run.trained.get("loss")
    return not (repeats or name.startswith(_GRADIENT) or (_BUCKET.fullmatch(name) and name in run.held_out))


def _figure(run: Run, name: str) -> Chart:
    title, meaning = _MEANINGS.get(name, (name, ""))
    lines = [Curve("training", run.trained[name])] if name in run.trained else []
    if name in run.held_out:
        lines.append(Curve("held out", run.held_out[name], 1, marked=len(run.held_out[name]) <= 30))
    return _chart(run, lines, title, meaning, log_y=name not in _LAST)


def _chart(run: Run, lines: Sequence[Curve], title: str, meaning: str, log_y: bool = True) -> Chart:
    ends = "; ".join(f"{line.label} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines)
    svg = chart(lines, _name("curve", title), "step", spoken=f"{title} over steps: {ends}", scale=Scale(end=run.step, log_y=log_y))
    return Chart(svg, title, meaning)


def buckets(run: Run) -> list[Block]:
    """Held-out figures by bucket of the process's steps: how each went, and where they stand. Nothing for a run without."""
    found: dict[str, dict[int, Points]] = {}
    for name, points in run.held_out.items():
        if match := _BUCKET.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = points
    return [block for figure, of in found.items() for block in _bucketed(run, figure, dict(sorted(of.items())))]


def _bucketed(run: Run, figure: str, of: dict[int, Points]) -> list[Block]:
    """The chart and the table of one figure; ``of``: by the first step of each bucket, in order."""
    steps = 0 if run.recipe.kind == "first_stage" else run.recipe.process.T
    lines, rows = list[Curve](), list[tuple[str, ...]]()
    for i, (start, points) in enumerate(of.items()):
        label = f"t {start}–{[*of, steps][i + 1] - 1}"
        lines.append(Curve(label, points, round(i * (RAMP - 1) / max(1, len(of) - 1)), ramp=True, marked=len(points) <= 30))
        values = [value for _, value in points]
        rows.append((label, *(f"{value:.4g}" for value in (values[0], min(values), max(values), values[-1]))))
    spoken = f"held-out {figure} by bucket of steps; at last: " + ", ".join(f"{row[0]} {row[-1]}" for row in rows)
    svg = chart(lines, _name("buckets", figure), "step of training", spoken=spoken, scale=Scale(end=run.step), wide=True)
    columns = ("steps of the process", "first", "lowest", "highest", "last")
    return [
        Charts([Chart(svg, f"Held-out {figure} by step of the process", "from little noise, t = 0, to almost nothing else", wide=True)]),
        Table(f"Held-out {figure} by step of the process", columns, rows, frozenset(range(1, 5)), folded=True),
    ]


def _name(kind: str, figure: str) -> str:
    """What a figure's chart is called in the page: letters that a name may have."""
    return f"{kind}-" + "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in figure)
