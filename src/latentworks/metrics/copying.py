"""The statistics of an audit: from distances to verdicts, by a threshold that real images have set, and what they say of a model."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["LEAST", "LEVEL", "Audit", "Copied", "Match", "Rule", "Times", "Values", "Verdict", "allowed", "calibrate", "checked", "wilson"]

LEVEL = 0.05
"""At most this share of real images may be taken for copies."""

UNSURE = 0.25
"""With so large a share of copies still possible, samples are too few to say that there are none."""

LEAST = 20
"""Real images without which no threshold keeps to `LEVEL`."""

_AIM = 0.04  # what is aimed at where there are enough real images, so that others do not exceed the level by chance
_SURELY = 5  # real images taken for copies from which on the aim may be lower than the level
_PARTS = 20  # in which real images are left out to check the rule
_WEIGHTS = np.array([0.3, 1.0, 0.5, 0.2])  # how much of what may be taken for copies by chance is spent in each space; near.SPACES

Values = Float[np.ndarray, "n 4"]
"""`near.Kin.ratios` of images, a row each."""

Times = Int[np.ndarray, "n 4"]
"""`near.Kin.times` of images, a row each."""


class Rule(NamedTuple):
    """The values of real images, sorted in each space, and the chance from which on an image is a copy."""

    real: Float[np.ndarray, "h 4"]
    limit: float

    def chances(self, values: Values, times: Times, own: bool = False) -> Float[np.ndarray, "n 4"]:
        """The share of real images that are as near in each space, over its weight. Nearer than all of them, it falls with the value.

        What training shows k times is copied sooner (arXiv:2301.13188), so a nearest picture that it has so often has 1 + ln k times the
        weight (weighted p-values: doi:10.1214/09-STS289). ``own``: the images are these real ones, each beside the others.
        """
        pairs = zip(self.real.T, values.T, strict=True)
        places = np.stack([np.searchsorted(real, column, side="right") for real, column in pairs], axis=1) - own
        least = np.where(own & (values <= self.real[0]), self.real[1], self.real[0])
        beyond = np.divide(values, least, out=np.ones_like(values), where=(values < least) & (least > 0))
        chances: np.ndarray = (places + 1) * beyond / (len(self.real) + 1 - own) / (_WEIGHTS * (1 + np.log(times)))
        return chances

    def scores(self, values: Values, times: Times) -> Float[np.ndarray, "n 4"]:
        """In each space; an image whose largest score is 1 or more is a copy."""
        scores: np.ndarray = self.limit / np.maximum(self.chances(values, times), 1e-9)
        return scores

    def copies(self, values: Values, times: Times) -> Bool[np.ndarray, " n"]:
        """Which images are copies."""
        flagged: np.ndarray = self.scores(values, times).max(axis=1) >= 1
        return flagged


def allowed(count: int) -> int:
    """How many of ``count`` real images may be taken for copies.

    Of exchangeable images, another one is then taken for a copy with a probability of about allowed / (count + 1) (conformal prediction,
    arXiv:2107.07511, section 1). Raises: ValueError for so few that none keeps to `LEVEL`.
    """
    if count < LEAST:
        raise ValueError(f"--data: {count} real images are too few to say how near one comes by chance: {LEAST} are needed")
    return max(min(_SURELY, math.floor(LEVEL * (count + 1))), math.floor(_AIM * (count + 1)))


def calibrate(values: Values, times: Times) -> Rule:
    """The rule that real images set: the widest that takes no more than `allowed` of them for copies, each beside the others.

    Raises: as `allowed`.
    """
    most = allowed(len(values))
    rule = Rule(np.sort(values, axis=0), 1.0)
    chances = np.sort(rule.chances(values, times, own=True).min(axis=1))
    limits = [chance for chance in chances[:most] if np.searchsorted(chances, chance, side="right") <= most]
    return rule._replace(limit=float(limits[-1] if limits else chances[0] / 2))


def checked(values: Values, times: Times, seed: int = 0) -> int | None:
    """How many real images are taken for copies, each by a rule of others: what the rule does to images it has not seen.

    None where these others would be too few for a rule.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(len(values)), min(_PARTS, len(values)))
    if len(values) - len(parts[0]) < LEAST:
        return None
    rules = (calibrate(np.delete(values, part, axis=0), np.delete(times, part, axis=0)) for part in parts)
    return sum(int(rule.copies(values[part], times[part]).sum()) for rule, part in zip(rules, parts, strict=True))


def wilson(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a proportion, 95 % by default."""
    share, wide = count / of, z * z / of
    centre = (share + wide / 2) / (1 + wide)
    reach = z * math.sqrt(share * (1 - share) / of + wide / (4 * of)) / (1 + wide)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)


class Match(NamedTuple):
    """A nearest training image, its distance, that over the distance to the next real image, and the score by both."""

    name: str
    distance: float
    ratio: float
    score: float


@dataclass(frozen=True)
class Verdict:
    """Of one image. ``score``: its largest; 1 or more is a copy. ``closest``: the space of that score."""

    name: str
    copy: bool
    score: float
    closest: str
    nearest: dict[str, Match]

    @property
    def original(self) -> str:
        """The training image it is a copy of, if it is one."""
        return self.nearest[self.closest].name


class Copied(NamedTuple):
    """A training image, how many of the samples are copies of it, and how often the training set has it."""

    name: str
    copies: int
    times: int


@dataclass(frozen=True)
class Audit:
    """The verdicts on all samples; ``real`` images set the rule, ``false_alarms`` of them are taken for copies by a rule of the others
    (None: they are too few to see).
    """

    verdicts: list[Verdict]
    rule: Rule
    real: int
    what: str  # the real images are
    false_alarms: int | None
    times: dict[str, int]  # how often the training set has each original
    notes: list[str] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """Samples that are copies."""
        return sum(verdict.copy for verdict in self.verdicts)

    @property
    def copied(self) -> list[Copied]:
        """Training images with copies, the most copied first."""
        counts = Counter(verdict.original for verdict in self.verdicts if verdict.copy)
        return [Copied(name, count, self.times[name]) for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    @property
    def words(self) -> str:
        """The verdict on the model."""
        low, high = wilson(self.copies, len(self.verdicts))
        found = f"{self.copies} of {len(self.verdicts)} samples are copies of training images ({_percent(low, high)} with 95 % confidence)"
        real = f"; of {self.real} {self.what}, which cannot be copies, {self.false_alarms} look like ones"
        real = "" if self.false_alarms is None else real
        if low > 0.5:
            return f"it mostly repeats its training images: {found}{real}"
        if low > LEVEL:
            return f"it repeats some of its training images: {found}{real}"
        if high > UNSURE:
            return f"too few samples to tell: {found}{real}"
        sure = f"at most {LEVEL:.0%} is what chance gives" if high > LEVEL else "which is what chance gives"
        return f"no sign of memorisation: {found}, {sure}{real}"

    def summary(self) -> dict[str, Any]:
        """What an evaluation card says of it: plain values."""
        low, high = wilson(self.copies, len(self.verdicts))
        return {
            "verdict": self.words,
            "samples": len(self.verdicts),
            "copies": self.copies,
            "share": self.copies / len(self.verdicts),
            "interval": [low, high],
            "real": self.real,
            "real_are": self.what,
            "false_alarms": self.false_alarms,
            "copied": [copied._asdict() for copied in self.copied[:10]],
            "notes": self.notes,
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        samples = [{**asdict(one), "nearest": {space: match._asdict() for space, match in one.nearest.items()}} for one in self.verdicts]
        return {**self.summary(), "copied": [copied._asdict() for copied in self.copied], "images": samples}


def _percent(low: float, high: float) -> str:
    return f"{low:.1%} to {high:.1%}".replace("%", " %")
