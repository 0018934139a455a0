"""Line charts as SVG inside an HTML page: real text, colours by the page's variables, names of its own, nothing from elsewhere."""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["POINTS", "RAMP", "SERIES", "Curve", "Scale", "chart"]

SERIES, RAMP = 8, 10
"""Colours of the page: --series-0 and so on for different things, --ramp-0 and so on from first to last."""

POINTS = 300
"""Points a curve is drawn by at most; of a longer one means of neighbours are drawn."""

_INK, _GRID = "#0a02f0", "#0a02f1"  # not black, which Matplotlib leaves out as SVG's default
_COLOURS = {
    _INK: "currentColor", _GRID: "var(--line)",
    **{f"#0a00{place:02x}": f"var(--series-{place})" for place in range(SERIES)},
    **{f"#0a01{place:02x}": f"var(--ramp-{place})" for place in range(RAMP)},
}  # fmt: skip
"""What is drawn in, for Matplotlib: no colours but names, which become the page's own, that differ by day and night."""

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "latentworks", "text.parse_math": False, "font.size": 8.5, "font.sans-serif": ["DejaVu Sans"],
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _GRID, "grid.color": _GRID,
    "axes.grid": True, "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0,
    "ytick.major.size": 0, "axes.axisbelow": True, "lines.linewidth": 1.4, "path.simplify_threshold": 0.3, "legend.frameon": False,
}  # fmt: skip


class Curve(NamedTuple):
    """Points with finite coordinates; a ``ramp`` colour says its place in an order. ``marked``: few points, each shown."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    ramp: bool = False
    marked: bool = False


class Scale(NamedTuple):
    """``log_x``: a logarithmic abscissa, whose points must be positive; ``end``: it goes from 0 to there. ``log_y``: the ordinate is
    logarithmic if all values are positive and the largest is more than 10 times the smallest; else linear."""

    log_x: bool = False
    end: float | None = None
    log_y: bool = True


def chart(curves: Sequence[Curve], name: str, x: str, *, spoken: str, scale: Scale = Scale(), wide: bool = False) -> str:
    """The ``svg`` element. ``name``: a prefix that no other chart of the page has; ``x``: what the abscissa is; ``spoken``: what the chart
    shows, in words; ``wide``: across the page, with the legend beside it. Raises: ValueError without Matplotlib."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a report needs Matplotlib: pip install 'latentworks[report]'") from None
    with style.context(_STYLE, after_reset=True):
        figure = Figure(figsize=(8.4 if wide else 4.4, 3.0 if wide else 2.5), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            colour = f"#0a{'01' if curve.ramp else '00'}{curve.colour % (RAMP if curve.ramp else SERIES):02x}"
            marker = "o" if curve.marked or len(curve.points) == 1 else ""
            axes.plot(*zip(*_thinned(curve.points), strict=True), color=colour, label=curve.label, marker=marker, markersize=3.0)
        axes.set(xlabel=x)
        _rule(axes, curves, scale)
        if len(curves) > 1:
            place = "center left" if wide else "best"
            axes.legend(loc=place, bbox_to_anchor=(1.0, 0.5) if wide else None, labelspacing=0.3, handlelength=1.4)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(ElementTree.fromstring(written.getvalue()), name, spoken)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS`: means of as many neighbours each."""
    size = -(-len(points) // POINTS)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _rule(axes: "Axes", curves: Sequence[Curve], scale: Scale) -> None:
    """Scales, and where they are marked."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if scale.end:
        axes.set_xlim(-0.03 * scale.end, 1.03 * scale.end)
    if scale.log_x:  # each place that was measured at is worth its number
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in curves for x, _ in curve.points})))
    values = [value for curve in curves for _, value in curve.points]
    if scale.log_y and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 1000 * min(values) else (1,)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"))


def _inline(svg: ElementTree.Element, name: str, spoken: str) -> str:
    """The element without namespaces and styles for the whole page; what is named in it is named for this chart alone."""
    svg.attrib = {"viewBox": svg.attrib["viewBox"], "role": "img", "aria-label": spoken}
    used = set(re.findall(r"""(?:url\(|")#([\w.-]+)""", ElementTree.tostring(svg, "unicode")))
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip("\n "), None
        kept = ((key.rpartition("}")[2], value) for key, value in element.attrib.items() if key != "id" or value in used)
        element.attrib = {key: _renamed(key, value, name) for key, value in kept}
    return ElementTree.tostring(svg, "unicode", short_empty_elements=True)


def _renamed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value.removeprefix('#')}"
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "d":
        return re.sub(r"(\d+\.\d)\d+", r"\1", " ".join(value.split()))
    if key == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)  # the page's own
        return re.sub("#[0-9a-f]{6}", lambda colour: _COLOURS.get(colour.group(), colour.group()), value)
    return value
