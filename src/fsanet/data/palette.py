"""Colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from fsanet.errors import InputError

Colour = tuple[int, int, int]


def class_palette(palette: Sequence[Sequence[int]] | None, num_classes: int) -> tuple[Colour, ...]:
    """The given colours, checked, or distinct ones.

    >>> class_palette(None, 2)
    ((217, 65, 65), (65, 109, 217))
    """
    if palette is None:
        # Steps of the golden ratio spread hues evenly for any number of classes.
        hues = [(i * 0.618034) % 1 for i in range(num_classes)]
        bright = [(0.85, 0.6, 0.95)[i // 8 % 3] for i in range(num_classes)]
        return tuple(
            (round(r * 255), round(g * 255), round(b * 255))
            for r, g, b in (
                colorsys.hsv_to_rgb(h, 0.7, v) for h, v in zip(hues, bright, strict=True)
            )
        )
    if len(palette) != num_classes:
        raise InputError(f"palette has {len(palette)} colours for {num_classes} classes")
    if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in palette):
        raise InputError("palette colours are (r, g, b) with values 0..255")
    return tuple((int(r), int(g), int(b)) for r, g, b in palette)
