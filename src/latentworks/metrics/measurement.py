"""A number with everything needed to repeat it: how many images, against what, resized how, which seed, which network."""

from dataclasses import dataclass

__all__ = ["Measurement"]

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

    def __str__(self) -> str:
        value = f"{self.value:.4g}" + (f" {self.unit}" if self.unit else "")
        between = f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]" if self.interval else ""
        facts = [f"n {self.n}", f"reference {self.reference}", f"resize {self.resize}"]
        facts += [f"network {self.network}"] if self.network else []
        facts += [] if self.seed is None else [f"seed {self.seed}"]
        few = f"; fewer than {ENOUGH:,} images: compare only at equal n" if self.network and self.n < ENOUGH else ""
        return f"{self.name} {value}{between} ({', '.join(facts)}{few})"
