"""Holes to train inpainting on, drawn as LaMa draws its large masks: thick strokes or boxes (arXiv:2109.07161, section 2.3)."""

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

__all__ = ["LEAST", "MOST", "SMALLEST", "Mask", "draw_mask"]

Mask = Bool[np.ndarray, "h w"]
"""True is the hole."""

LEAST, MOST = 0.05, 0.5
"""Share of the image a hole takes; the upper limit is LaMa's (``max_tamper_area``)."""

SMALLEST = 8
"""Pixels a side below which there is no mask to speak of."""

FRAME = 256
"""Pixels a side for which LaMa's settings below are meant; for other images they are scaled by the root of the area."""

CHAINS, SEGMENTS, LENGTH, WIDTH = (1, 5), (1, 5), (10, 210), (5, 105)
BOXES, SIDE, MARGIN = (1, 4), (30, 150), 10


def draw_mask(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Chains of thick strokes or up to four boxes, one as likely as the other, until the hole takes `LEAST` to `MOST` of the image.

    Raises: ValueError for fewer than `SMALLEST` pixels a side.
    """
    if min(height, width) < SMALLEST:
        raise ValueError(f"mask: an image of {height} x {width} pixels is too small for one: give at least {SMALLEST} a side")
    while True:
        mask = _strokes(height, width, rng) if rng.random() < 0.5 else _boxes(height, width, rng)
        if LEAST <= mask.mean() <= MOST:
            return mask


def _strokes(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Each chain starts anywhere; a segment goes on where the one before it ended, in any direction, with a width of its own."""
    scale = (height * width) ** 0.5 / FRAME
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(*CHAINS, endpoint=True)):
        place = rng.random(2) * (width, height)
        for _ in range(rng.integers(*SEGMENTS, endpoint=True)):
            angle, length, thick = rng.uniform(0, 2 * np.pi), scale * rng.uniform(*LENGTH), max(1.0, scale * rng.uniform(*WIDTH))
            end = (place + length * np.array([np.cos(angle), np.sin(angle)])).clip(0, (width, height))
            draw.line([*place, *end], fill=1, width=round(thick))
            for x, y in (place, end):  # round ends
                draw.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=1)
            place = end
    return np.asarray(image)


def _boxes(height: int, width: int, rng: np.random.Generator) -> Mask:
    scale = (height * width) ** 0.5 / FRAME
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(*BOXES, endpoint=True)):
        spans = []
        for side in mask.shape:
            margin = min(round(MARGIN * scale), side // 4)
            extent = min(max(1, round(scale * rng.uniform(*SIDE))), side - 2 * margin)
            start = int(rng.integers(margin, side - margin - extent, endpoint=True))
            spans.append(slice(start, start + extent))
        mask[tuple(spans)] = True
    return mask
