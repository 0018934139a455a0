"""What composed scenes are made of and how they are described: 48 everyday categories, and captions that count and relate them."""

from typing import NamedTuple

__all__ = ["CATEGORIES", "RELATIONS", "Category", "Relation", "caption", "counted", "whereabouts"]


class Category(NamedTuple):
    """A kind of object: its name, its plural, and the emoji that is drawn."""

    name: str
    plural: str
    codepoints: str


def _category(line: str) -> Category:
    name, plural, codepoints = (part.strip() for part in line.split(","))
    return Category(name, name + plural if plural in ("s", "es") else plural, codepoints)


CATEGORIES: tuple[Category, ...] = tuple(
    _category(line)
    for line in """
    cat, s, 1F408
    dog, s, 1F415
    apple, s, 1F34E
    car, s, 1F697
    house, s, 1F3E0
    tree, s, 1F333
    book, s, 1F4D5
    clock, s, 23F0
    banana, s, 1F34C
    horse, s, 1F40E
    bicycle, s, 1F6B2
    umbrella, s, 2602
    fish, fish, 1F41F
    guitar, s, 1F3B8
    sunflower, s, 1F33B
    rocket, s, 1F680
    chair, s, 1FA91
    cake, s, 1F382
    butterfly, butterflies, 1F98B
    sailboat, s, 26F5
    key, s, 1F511
    soccer ball, s, 26BD
    mushroom, s, 1F344
    bus, es, 1F68C
    cow, s, 1F404
    pig, s, 1F416
    sheep, sheep, 1F411
    bird, s, 1F426
    turtle, s, 1F422
    elephant, s, 1F418
    rabbit, s, 1F407
    strawberry, strawberries, 1F353
    pineapple, s, 1F34D
    carrot, s, 1F955
    pizza, s, 1F355
    hamburger, s, 1F354
    truck, s, 1F69A
    motorcycle, s, 1F3CD
    airplane, s, 2708
    helicopter, s, 1F681
    palm tree, s, 1F334
    cactus, cactuses, 1F335
    tulip, s, 1F337
    bed, s, 1F6CF
    hat, s, 1F3A9
    shoe, s, 1F45F
    bell, s, 1F514
    balloon, s, 1F388
    """.strip().splitlines()
)
"""The first 24 are the ones of layout experiments."""


class Relation(NamedTuple):
    """How all objects of one kind lie to all of another: along an axis (0: x, 1: y), before or after."""

    words: str
    axis: int
    before: bool


RELATIONS = (Relation("left of", 0, True), Relation("right of", 0, False), Relation("above", 1, True), Relation("below", 1, False))
_MIDDLE = 0.38, 0.62  # what lies between is on neither side
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def counted(category: Category, count: int) -> str:
    """ "a cat", "an apple", "two cats"."""
    if count == 1:
        return f"{'an' if category.name[0] in 'aeiou' else 'a'} {category.name}"
    return f"{_NUMBERS[count]} {category.plural}"


def caption(groups: list[tuple[Category, int]], relation: Relation) -> str:
    """ "a cat left of two apples, and three stars": the relation holds between the first two groups."""
    first, second, *others = [counted(*group) for group in groups]
    return ", and ".join([f"{first} {relation.words} {second}", *others])


def whereabouts(objects: list[tuple[Category, float, float]]) -> str:
    """ "star middle, cat top left, apple right": each object's category and where its centre lies, x and y relative to the side."""
    return ", ".join(f"{category.name} {_place(x, y)}" for category, x, y in objects)


def _place(x: float, y: float) -> str:
    words = [_side(y, "top", "bottom"), _side(x, "left", "right")]
    return " ".join(word for word in words if word) or "middle"


def _side(centre: float, before: str, behind: str) -> str:
    return before if centre < _MIDDLE[0] else behind if centre > _MIDDLE[1] else ""
