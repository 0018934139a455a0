"""What others measured, as JSON: the evaluation card, the audit, sweeps of sampling; shown whatever else their writers put into them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from latentworks.metrics.card import Card, read_card
from latentworks.metrics.measurement import DISTANCE
from latentworks.report.blocks import Block, Chart, Charts, Facts, Picture, Pictures, Table, Text
from latentworks.report.charts import SERIES, Curve, Scale, chart
from latentworks.report.pictures import embedded
from latentworks.report.run import read_json

__all__ = ["audit", "card", "sweep", "swept"]

ROWS = 100
"""Rows of a table that are shown at most."""

_APART = ("n", "eta", "seed", "reference", "network")
"""Where rows of a sweep differ in these too, their distances do not compare: they are curves of their own."""

_FIRST = ("name", "value", "unit", "interval", "n", "reference", "sampler", "steps", "guidance", "distance")
"""Columns that come first, in this order; the others follow as they come."""


def card(path: Path, own: Collection[str], notes: list[str]) -> list[Block]:
    """The figures of an evaluation, then what they depend on. Raises: ValueError for a file that is no card.

    ``own``: hashes of the run's weights; that these are others is added to ``notes``.
    """
    values = read_json(path)
    measurements, said = values.get("measurements"), values.get("notes") or []
    if not _objects(measurements) or not isinstance(said, list):
        raise ValueError(f"{path.name} is no evaluation card, it has no measurements: `lw evaluate RUN --data DIR --json FILE` writes one")
    model = values.get("model")
    _of_others(path.name, model.get("weights") if isinstance(model, dict) else None, own, notes)
    rest = {key: value for key, value in values.items() if key not in ("measurements", "notes", "format")}
    return [*_table("Figures", measurements, foldable=False), *(Text(f"Note: {_shown(note)}") for note in said), *_blocks(rest)]


def _of_others(name: str, weights: object, own: Collection[str], notes: list[str]) -> None:
    """Note that something was measured of other weights than the run's. What does not say of which ones is believed."""
    if isinstance(weights, str) and weights not in own:
        notes.append(f"{name} was measured of other weights than this run's: measure it anew")


def audit(folder: Path, own: Collection[str], notes: list[str]) -> list[Block]:
    """What was looked for, and its pictures. Raises: ValueError for a folder without audit.json.

    ``own``: as `card`; ``notes`` also grows by damaged pictures.
    """
    if not (folder / "audit.json").is_file():
        raise ValueError(f"{folder.name} holds no audit.json, so it is no audit: give a folder that `lw audit` wrote")
    values = read_json(folder / "audit.json")
    if _objects(samples := values.get("images")):
        values["images"] = sorted(samples, key=lambda row: _number(row.get("score")) or 0.0, reverse=True)  # the likest copies first
    _of_others(f"{folder.name}/audit.json", values.get("weights"), own, notes)
    pictures = list[Picture]()
    for path in sorted(folder.glob("*.png")):
        name = path.stem.replace("_", " ").replace("-", " ")
        try:
            pictures.append(embedded(path, f"picture of the audit: {name}", name))
        except ValueError as error:
            notes.append(str(error))
    blocks = list(_blocks({key: value for key, value in values.items() if key != "format"}))
    return [*blocks, Pictures([("", pictures)])] if pictures else blocks


def sweep(path: Path, own: Collection[str], notes: list[str], cards: list[dict[str, Any]], *, name: str) -> list[Block]:
    """Its distances over steps and over guidance, then all its rows. ``name``: of its charts. Raises: ValueError for other files.

    The shape: an object with ``rows``, a list of objects; drawn are those with a number in ``distance`` and in ``steps`` or ``guidance``,
    one curve for each ``sampler`` and value of the other one, and of what else tells distances apart where it differs. What else is in
    the object or a row is shown in words. An evaluation card is a row to go into ``cards``, of which `swept` makes one sweep; ``own`` and
    ``notes`` as in `card`.
    """
    values = read_json(path)
    if "measurements" in values:
        found = read_card(path)
        cards.append(_point(path.name, found))
        _of_others(path.name, found.model.weights, own, notes)
        return []
    rows = values.get("rows")
    if not _objects(rows):
        raise ValueError(f"{path.name} is no sweep: it needs rows, a list of objects with sampler, steps, guidance and distance")
    rest = {key: value for key, value in values.items() if key not in ("rows", "format")}
    return [*swept(rows, name, f"All of {path.name}"), *_blocks(rest)]


def swept(rows: Sequence[Mapping[str, Any]], name: str, caption: str) -> list[Block]:
    """The charts of rows, and the rows; nothing of none."""
    charts = [drawn for over, other in (("steps", "guidance"), ("guidance", "steps")) if (drawn := _swept(rows, over, other, name))]
    return [*([Charts(charts)] if charts else []), *_table(caption, rows)]


def _point(name: str, card: Card) -> dict[str, Any]:
    """An evaluation card as a row of a sweep. Raises: ValueError for one without drawn images."""
    distance = next((one for one in card.measurements if one.name == DISTANCE), None)
    if card.drawing is None or distance is None:
        raise ValueError(f"{name} is a card without drawn images, so no part of a sweep: leave it out")
    settings = {key: getattr(card.drawing, key) for key in ("sampler", "steps", "eta", "guidance", "n", "seed")}
    interval, network = list(distance.interval or ()), f"{card.network.name} {card.network.hash[:8]}"
    return {**settings, "distance": distance.value, "interval": interval, "reference": distance.reference, "network": network, "card": name}


def _swept(rows: Sequence[Mapping[str, Any]], over: str, other: str, name: str) -> Chart | None:
    """The distance over one setting, a curve for each sampler and value of the other one that has two points; None without any."""
    found: dict[str, dict[float, float]] = {}
    others = [key for key in _APART if len({_shown(row.get(key)) for row in rows}) > 1]
    for row in rows:
        at, distance = _number(row.get(over)), _number(row.get("distance"))
        if at is not None and distance is not None:
            beside = [f"{key} {_shown(row[key])}" for key in (other, *others) if row.get(key) is not None]
            found.setdefault(" ".join([_shown(row.get("sampler")), *beside]).strip() or "distance", {})[at] = distance
    drawn = {label: sorted(points.items()) for label, points in found.items() if len(points) > 1}
    if not drawn:
        return None
    lowest = sorted(drawn, key=lambda label: min(distance for _, distance in drawn[label]))[:SERIES]  # the worse ones are left out
    curves = [Curve(label, drawn[label], i, marked=True) for i, label in enumerate(label for label in drawn if label in lowest)]
    best = min(((y, x, curve.label) for curve in curves for x, y in curve.points))
    spoken = f"distance over {over}: the smallest is {best[0]:.4g} at {over} {best[1]:g} ({best[2]})"
    positions = [x for curve in curves for x, _ in curve.points]
    log_x = over == "steps" and min(positions) > 0 and len(set(positions)) <= 10
    left_out = f"; {len(drawn) - SERIES} more curves are in the table" if len(drawn) > SERIES else ""
    svg = chart(curves, f"{name}-{over}", over, spoken=spoken, scale=Scale(log_x=log_x))
    return Chart(svg, f"Distance over {over}", f"The smallest is {best[0]:.4g} at {over} {best[1]:g} ({best[2]}){left_out}.")


def _objects(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether it is a list of objects, with at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _blocks(values: Mapping[str, Any], prefix: str = "") -> Iterator[Block]:
    """Plain values as facts, lists of objects as tables under their names."""
    facts, tables = list[tuple[str, str]](), list[Block]()
    for key, value in _flat(values, prefix):
        if _objects(value):
            tables += _table(key.capitalize(), value)
        elif value not in (None, "", [], {}):
            facts.append((key, _shown(value)))
    if facts:
        yield Facts(facts)
    yield from tables


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}, ")
        else:
            yield name, value


def _table(caption: str, rows: Sequence[Mapping[str, Any]], *, foldable: bool = True) -> list[Block]:
    """One table of objects, a column for each key that any has a value for; nothing of no rows. Many rows are folded, if ``foldable``."""
    flat = [{key: value for key, value in _flat(row, "") if value not in (None, "")} for row in rows[:ROWS]]
    names = list(dict.fromkeys(key for row in flat for key in row))
    columns = sorted(names, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    numbers = frozenset(i for i, key in enumerate(columns) if all(_number(row.get(key, 0)) is not None for row in flat))
    more = f" (the first {ROWS} of {len(rows)})" if len(rows) > ROWS else ""
    cells = [[_shown(row.get(key)) for key in columns] for row in flat]
    return [Table(caption + more, columns, cells, numbers, folded=foldable and len(rows) > 12)] if columns else []


def _shown(value: Any) -> str:
    """A value in words, on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return ", ".join(map(_shown, value[:ROWS])) + (", …" if len(value) > ROWS else "")
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    return " ".join(str(value).split())
