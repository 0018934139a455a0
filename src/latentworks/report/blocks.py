"""What a section of a report is made of: plain values that the template lays out and escapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

__all__ = ["Block", "Chart", "Charts", "Facts", "Missing", "Picture", "Pictures", "Section", "Table", "Text"]


@dataclass(frozen=True)
class Text:
    """A paragraph; a ``quote`` keeps its lines."""

    kind: ClassVar[str] = "text"
    text: str
    quote: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; columns at the places ``numbers`` are set to the right. ``folded``: shown when asked for."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """An SVG that goes into the page as it is, so it must be of our own making; its title and what is to be known of it; whether it takes
    the whole width."""

    svg: str
    title: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts beside each other."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, its size in pixels, what it shows for those who cannot see it, and a line below."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Pictures:
    """Rows of pictures, each row with a line of its own; ``slides``: one at a time, chosen by a slider where scripts run."""

    kind: ClassVar[str] = "pictures"
    rows: Sequence[tuple[str, Sequence[Picture]]]
    slides: bool = False


Block = Text | Facts | Table | Charts | Pictures


@dataclass(frozen=True)
class Section:
    """A heading with an address in the page, and what stands below it."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Missing:
    """A section that is not there, and the command that makes what it would show."""

    title: str
    command: str
