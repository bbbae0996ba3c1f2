"""A contact sheet: images of a data set with their labels, and a legend of the classes."""

# (H, W) size of a picture in pixels

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fsanet.data.masks import Colour
from fsanet.errors import printable
from fsanet.predict.draw import TEXT, Entry, Picture, beside_legend, font, overlay

_CELL = (240, 180)  # width and height that a picture is fitted into
_LINE = 18  # height of the line of text below it
_GAP = 6
_LETTERS = 12  # height of names; those of the legend are a half larger


def draw_contact_sheet(
    items: Iterable[tuple[str, Tensor, Tensor]],
    palette: Sequence[Colour],
    entries: Sequence[Entry],
    columns: int = 4,
) -> Picture:
    """Draw labelled images side by side.

    Args:
        items: name, image uint8 (3, H, W) and ids uint8 (H, W) of each.
        palette: colours by id; other ids leave the image as it is.
        entries: names, colours and shares for the legend.
        columns: pictures in a row.
    """
    cells = []
    for name, image, ids in items:
        height, width = ids.shape
        factor = min(_CELL[0] / width, _CELL[1] / height)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())  # (H, W, 3)
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        mask = np.asarray(Image.fromarray(ids.numpy()).resize(size, Image.Resampling.NEAREST))
        cells.append((name, overlay(mask, palette, small).to_image()))
    columns = max(1, min(columns, len(cells)))
    step = _CELL[0] + _GAP, _CELL[1] + _LINE + _GAP
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(cells):
        left, top = _GAP + index % columns * step[0], _GAP + index // columns * step[1]
        middle = left + (_CELL[0] - picture.width) // 2
        sheet.paste(picture, (middle, top + _CELL[1] - picture.height))
        text = printable(name, 34)
        draw.text((left, top + _CELL[1] + 2), text, fill=TEXT, font=font(_LETTERS))
    width, height = sheet.size
    return beside_legend(
        Picture(width, height, iter([np.asarray(sheet)])), entries, letters=_LETTERS * 3 // 2
    )
