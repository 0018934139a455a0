"""A number with all that is needed to repeat it: how many images, against what, resized how, which seed and network; a model's numbers."""

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["DISTANCE", "Evaluation", "Measurement", "Progress"]

DISTANCE = "Fréchet distance"
"""What the distance between drawn and real images is called."""

ENOUGH = 10_000  # below this a Fréchet distance is biased upwards by an amount worth a warning


@dataclass(frozen=True)
class Measurement:
    """One published figure. ``str`` of it is the one line in which it is always printed."""

    name: str  # "Fréchet distance", "PSNR"
    value: float
    n: int  # images measured
    reference: str  # what they were compared with, and how many
    resize: str  # the filter and size before the network; "none" for paired measures
    seed: int | None = None  # of sampling and of random subsets; None: nothing random
    network: str | None = None  # name and hash of the feature network
    interval: tuple[float, float] | None = None  # 95 % bootstrap interval
    unit: str = ""
    settings: str | None = None  # how the images were drawn, and the measure's own settings

    def __str__(self) -> str:
        value = f"{self.value:.4g}" + (f" {self.unit}" if self.unit else "")
        between = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]" if self.interval else ""
        facts = [f"n {self.n}", f"reference {self.reference}", f"resize {self.resize}"]
        facts += [f"network {self.network}"] if self.network else []
        facts += [] if self.seed is None else [f"seed {self.seed}"]
        facts += [self.settings] if self.settings else []
        few = f"; {self.few}" if self.few else ""
        return f"{self.name} {value}{between} ({', '.join(facts)}{few})"

    @property
    def few(self) -> str:
        """What is to be said of a distance between few images, else nothing."""
        return f"fewer than {ENOUGH:,} images: compare only at equal n" if self.network and self.n < ENOUGH else ""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one model, and what there is to know about them."""

    measurements: list[Measurement]
    notes: list[str] = field(default_factory=list)


class Progress(NamedTuple):
    """How far an evaluation is."""

    what: str
    done: int
    total: int
