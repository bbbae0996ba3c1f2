"""Drawing of masks: colours, boundaries, legend.

Shapes: (H, W) an image; arrays are channels-last, as Pillow has them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fsanet.errors import InputError

Colour = tuple[int, int, int]
Entry = tuple[str, Colour, float]  # name, colour, share of the image
Array = np.ndarray[Any, Any]

UNLABELLED: Colour = (128, 128, 128)
_BACKGROUND: Colour = (255, 255, 255)
_TEXT: Colour = (32, 32, 32)
_MAX_ENLARGEMENT = 8
_READABLE_SIDE = 192  # pixels; shorter sides are enlarged when a legend goes with the image


def full_palette(palette: Sequence[Colour]) -> list[int]:
    """256 colours as Pillow wants them; ids without a class are grey."""
    colours = [*palette, *[UNLABELLED] * (256 - len(palette))]
    return [int(value) for colour in colours for value in colour]


def colourise(mask: Array, palette: Sequence[Colour]) -> Array:
    """Class ids uint8 (H, W) -> uint8 (H, W, 3)."""
    table = np.array(full_palette(palette), dtype=np.uint8).reshape(256, 3)
    return table[mask]  # (H, W, 3)


def boundaries(mask: Array, thickness: int = 1) -> Array:
    """True where a pixel's neighbour to the right or below has another class, bool (H, W)."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    wide = edge.copy()
    for step in range(1, thickness):
        wide[:, step:] |= edge[:, :-step]
    edge = wide.copy()
    for step in range(1, thickness):
        wide[step:] |= edge[:-step]
    return wide


def overlay(
    mask: Array,
    palette: Sequence[Colour],
    image: Array | None = None,
    *,
    alpha: float = 0.5,
    boundaries: bool = True,
    legend: Sequence[Entry] | None = None,
) -> Image.Image:
    """Blend class colours over an image.

    Args:
        mask: uint8 (H, W); ids beyond the palette leave the image as it is.
        palette: colours by id.
        image: uint8 (H, W, 3); None draws the plain colours.
        alpha: weight of the colours, 0..1.
        boundaries: draw lines between classes.
        legend: entries to name below a wide image, or beside a tall one.

    Raises:
        InputError: ``alpha`` out of its range.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give the weight of the colours, 0 to 1")
    colours = colourise(mask, palette)
    if image is None:
        blend = colours
    else:
        labelled = (mask < len(palette))[..., None]  # (H, W, 1)
        weight = np.where(labelled, np.float32(alpha), np.float32(0))
        blend = (image * (1 - weight) + colours * weight + np.float32(0.5)).astype(np.uint8)
    factor = 1
    if legend is not None:
        factor = min(_MAX_ENLARGEMENT, math.ceil(_READABLE_SIDE / min(mask.shape)))
    if factor > 1:
        blend, mask, colours = (
            a.repeat(factor, 0).repeat(factor, 1) for a in (blend, mask, colours)
        )
    if boundaries and image is not None:
        _draw_boundaries(blend, mask, colours)
    picture = Image.fromarray(blend)
    return picture if legend is None else with_legend(picture, legend)


def _draw_boundaries(blend: Array, mask: Array, colours: Array) -> None:
    thickness = max(1, round(min(mask.shape) / 400))
    edge = boundaries(mask, thickness)
    # The full colour, halfway to white, stands out on dark and on bright images.
    blend[edge] = colours[edge] // 2 + 128


def with_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """The picture with class names, colours and shares below it (wide) or beside it (tall)."""
    if not entries:
        return picture
    width, height = picture.size
    size = int(min(40, max(12, min(width, height) / 24)))
    type_face = font(size)
    pad, row = size // 2, round(size * 1.6)
    labels = [(name, colour, percent(share)) for name, colour, share in entries]
    name_width = max(math.ceil(type_face.getlength(name)) for name, _, _ in labels)
    share_width = max(math.ceil(type_face.getlength(share)) for _, _, share in labels)
    # swatch, gap, name, gap, share, gap to the next column
    column = size + pad + name_width + pad + share_width + 3 * pad
    below = width >= height
    if below:
        columns = max(1, min(len(labels), (width - pad) // column))
        rows = math.ceil(len(labels) / columns)
        columns = math.ceil(len(labels) / rows)  # as even as may be
        canvas_size = (max(width, pad + columns * column), height + rows * row + 2 * pad)
        origin = (pad, height + pad)
    else:
        rows = max(1, min(len(labels), (height - 2 * pad) // row))
        columns = math.ceil(len(labels) / rows)
        canvas_size = (width + pad + columns * column, max(height, rows * row + 2 * pad))
        origin = (width + 2 * pad, pad)
    canvas = Image.new("RGB", canvas_size, _BACKGROUND)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (name, colour, share) in enumerate(labels):
        x = origin[0] + index // rows * column
        y = origin[1] + index % rows * row
        middle = y + row // 2
        box = (x, middle - size // 2, x + size, middle + size // 2)
        draw.rectangle(box, fill=colour, outline=_TEXT)
        left = x + size + pad
        draw.text((left, middle), name, fill=_TEXT, font=type_face, anchor="lm")
        right = left + name_width + pad + share_width
        draw.text((right, middle), share, fill=_TEXT, font=type_face, anchor="rm")
    return canvas


def percent(share: float) -> str:
    """A share of 0..1 as text that never rounds something to nothing.

    >>> percent(0.256), percent(0.0001), percent(1.0), percent(0.9999)
    ('25.6 %', '<0.1 %', '100 %', '>99.9 %')
    """
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    return "100 %" if share == 1 else f"{100 * share:.1f} %"


@functools.lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A sans-serif font of ``size`` pixels, on every machine the same."""
    # Matplotlib's files, because Pillow's own font holds few letters beyond ASCII.
    package = importlib.util.find_spec("matplotlib")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)
