"""How far a long piece of work is; the work yields it, a driver shows it."""

from typing import NamedTuple

__all__ = ["Progress"]


class Progress(NamedTuple):
    """How many of how many are done."""

    done: int
    total: int
