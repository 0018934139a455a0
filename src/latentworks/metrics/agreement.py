"""Whether a repeated evaluation agrees with its card: which circumstances differ, and each figure beside the old one."""

import math
import re
from typing import NamedTuple

from latentworks.metrics.card import Card, facts
from latentworks.metrics.measurement import Measurement

__all__ = ["Difference", "Figure", "differences", "figures", "verdict"]

NAMES = ("model.name", "data.folder")
"""Circumstances without any effect on the figures."""

ROUNDING = ("machine.", "versions.")
"""Circumstances that leave a measurement the same but for rounding."""

RELATIVE = 1e-3
"""How far a figure may be off on another machine, as a share of it: another batch and no oneDNN moved distances by 1.2e-4."""

ABSOLUTE = {"KID": 1e-5, "precision": 0.01, "recall": 0.01}
"""The same in the figure's own unit, for those that may be near 0; the wider one of both counts."""

FLIPPED = 2
"""Images that may fall on the other side of a manifold's border, if that is more than what precision and recall are allowed anyway."""

TOLERANCE = "within 0.1 %; KID within 0.00001, precision and recall within 0.01 or two images, where that is more"

_HASH = re.compile("[0-9a-f]{16,}")


class Difference(NamedTuple):
    """A circumstance that is not that of the card."""

    path: str
    title: str
    old: str
    new: str

    @property
    def decides(self) -> bool:
        """Whether this is another measurement for it."""
        return not self.path.startswith((*NAMES, *ROUNDING))

    def __str__(self) -> str:
        old, new = (value[:12] if _HASH.fullmatch(value) else value for value in (self.old, self.new))
        return f"{self.title} differs: card {old}, now {new}"


def differences(old: Card, new: Card) -> list[Difference]:
    """Every circumstance that differs, in the card's order."""
    before, after = ({(fact.path, fact.section, fact.title): fact.value for fact in facts(card)} for card in (old, new))
    found = []
    for path, section, title in dict.fromkeys([*before, *after]):
        a, b = before.get((path, section, title), "none"), after.get((path, section, title), "none")
        if a != b:
            label = f"{title} ({section})" if path.startswith("data.") else title
            found.append(Difference(path, label, a, b))
    return found


class Figure(NamedTuple):
    """A figure of the card and the same one now; None where there is none. ``allowed``: how far apart they may be."""

    old: Measurement | None
    new: Measurement | None
    allowed: float

    @property
    def agrees(self) -> bool:
        """Value, number of images and interval, each end of it within what is allowed of the value."""
        if self.old is None or self.new is None or self.old.n != self.new.n:
            return False
        before, after = ((one.value, *(one.interval or ())) for one in (self.old, self.new))
        return len(before) == len(after) and all(_near(a, b, self.allowed) for a, b in zip(before, after, strict=True))

    def __str__(self) -> str:
        name = (self.old or self.new or _NOTHING).name
        old, new = ("none" if one is None else _value(one) for one in (self.old, self.new))
        if not self.agrees:
            verdict = "does not agree" + (f" within {self.allowed:.3g}" if self.allowed else ", should be equal")
        else:
            verdict = f"agrees within {self.allowed:.3g}" if self.allowed else "equal"
        return f"{name}: card {old}, now {new}: {verdict}"


_NOTHING = Measurement("figure", math.nan, 0, "", "")


def figures(old: Card, new: Card) -> list[Figure]:
    """Every figure of both, by name. On the same machine, with the same versions, they must be equal to the last bit."""
    before, after = ({one.name: one for one in card.measurements} for card in (old, new))
    exact, compared_with = _exact(old, new), old.data.reference.images
    return [
        Figure(before.get(name), after.get(name), 0.0 if exact else _allowed(before.get(name), compared_with))
        for name in dict.fromkeys([*before, *after])
    ]


def _exact(old: Card, new: Card) -> bool:
    return all(difference.path.startswith(NAMES) for difference in differences(old, new))


def _allowed(one: Measurement | None, compared_with: int) -> float:
    """``compared_with``: reference images, of which recall is a share, as precision is of the others."""
    if one is None or not math.isfinite(one.value):
        return 0.0
    kind = one.name.partition(" of ")[0]
    few = {"precision": FLIPPED / one.n, "recall": FLIPPED / compared_with}
    return max(RELATIVE * abs(one.value), ABSOLUTE.get(kind, 0.0), few.get(kind, 0.0))


def _near(a: float, b: float, allowed: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= allowed


def _value(one: Measurement) -> str:
    between = f" [{one.interval[0]:.6g}, {one.interval[1]:.6g}]" if one.interval else ""
    return f"{one.value:.6g}{between} (n {one.n})"


def verdict(old: Card, new: Card) -> tuple[bool, str]:
    """Whether a repetition agrees with its card, and why: it is the same measurement, and every figure agrees."""
    other = [difference.title for difference in differences(old, new) if difference.decides]
    compared = figures(old, new)
    off = [figure for figure in compared if not figure.agrees]
    why = [f"it is another measurement, which differs in {', '.join(other)}"] if other else []
    why += [f"{len(off)} of {len(compared)} figures are off"] if off else []
    if why:
        return False, "; ".join(why)
    if _exact(old, new):
        return True, f"all {len(compared)} figures are equal, to the last bit"
    return True, f"all {len(compared)} figures are equal but for rounding, as machine or versions are others: {TOLERANCE}"
