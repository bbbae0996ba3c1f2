"""Masks whose pixels are colours: the table of colours and classes, and reading by it.

Shapes: (H, W) size of a mask in pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsanet.data.images import open_image
from fsanet.data.masks import IGNORE, MASK_FORMATS, Colour
from fsanet.errors import InputError, printable
from fsanet.inputs import read_text

__all__ = [
    "IGNORED_NAMES",
    "ColourTable",
    "count_colours",
    "hex_names",
    "holds_colours",
    "read_colour_table",
]

#: Names in a colour table whose pixels are not scored.
IGNORED_NAMES = frozenset({"ignore", "unlabelled", "unlabeled", "void"})

_MOST_COLOURS = 1000  # in a table, or found in masks: more are those of a photograph
_SHOWN = 5
# Three numbers at the start of a line, or at its end, or before a colon as CVAT writes them.
_THREE = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_RGB = re.compile(rf"^{_THREE}(?=[\s,;:])|(?<![\w.]){_THREE}(?=[\s,;]*$|:)")
_HEX = re.compile(r"#([0-9a-fA-F]{6})\b")


@dataclass(frozen=True)
class ColourTable:
    """Which class a colour stands for.

    Attributes:
        classes: names of the classes in the order of their ids.
        ids: class id, or `IGNORE`, of each colour.
    """

    classes: tuple[str, ...]
    ids: Mapping[Colour, int]

    @property
    def palette(self) -> tuple[Colour, ...]:
        """The first colour of each class."""
        first: dict[int, Colour] = {}
        for colour, number in self.ids.items():
            first.setdefault(number, colour)
        return tuple(first[number] for number in range(len(self.classes)))

    def read(self, path: str | Path) -> Tensor:
        """Read a mask file: class ids uint8 (H, W).

        Raises:
            InputError: the file cannot be read, or has a colour that is not in the table.
        """
        codes = _read_codes(Path(path))  # (H, W)
        found = _lookup(tuple(self.ids.items()))[codes]
        missing = found < 0
        if missing.any():
            values, counts = np.unique(codes[missing], return_counts=True)
            order = counts.argsort()[::-1][:_SHOWN]
            colours = ", ".join(_shown(_colour(int(values[i]))) for i in order)
            more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
            raise InputError(
                f"{path}: {100 * missing.mean():.3g} % of the pixels have colours that are not in "
                f"the colour table: {colours}{more}; add them to it, as 'ignore' if they have no "
                "class"
            )
        return torch.from_numpy(found.astype(np.uint8))


def read_colour_table(path: str | Path) -> ColourTable:
    """Read a colour table: a line for each class, with its name and colour in either order.

    ``road 128 64 128``, ``128,64,128,road``, ``road:128,64,128::`` (CVAT, VOC) and
    ``#804080 road`` are all read. Ids follow the lines. Lines with the same name are one class of
    several colours; ``ignore``, ``void`` and ``unlabelled`` are not scored. Blank lines, lines that
    start with ``# ``, and a first line without numbers are skipped.

    Raises:
        InputError: the file cannot be read, or a line has no colour or no name, or a colour occurs
            twice.
    """
    ids: dict[Colour, int] = {}
    classes: list[str] = []
    lines = read_text(path, "colour table", 1_000_000).splitlines()
    for number, line in enumerate(map(str.strip, lines), 1):
        where = f"{path}, line {number}"
        if not line or (line[0] == "#" and not _HEX.match(line)):
            continue
        found = _HEX.search(line) or _RGB.search(line)
        if found is None:
            if number == 1 and not any(c.isdigit() for c in line):
                continue  # a heading
            raise InputError(f"{where}: {printable(line)!r} has no colour, as in 'road 128 64 128'")
        if found.re is _HEX:
            colour = _colour(int(found[1], 16))
        else:
            red, green, blue = (int(group) for group in found.groups() if group is not None)
            colour = (red, green, blue)
        if max(colour) > 255:
            raise InputError(f"{where}: {_shown(colour)}: colours are three numbers in 0..255")
        rest = (line[: found.start()].strip(" \t,;:\"'"), line[found.end() :].strip(" \t,;:\"'"))
        name = rest[0] or rest[1].split("\t")[0].strip()
        if not name:
            raise InputError(f"{where}: {printable(line)!r} has no name, as in 'road 128 64 128'")
        if colour in ids:
            raise InputError(f"{where}: the colour {_shown(colour)} occurs twice; remove one")
        if name.lower() in IGNORED_NAMES:
            ids[colour] = IGNORE
            continue
        if name not in classes:
            classes.append(name)
        ids[colour] = classes.index(name)
    if not classes:
        raise InputError(f"{path}: no class in it; write lines as 'road 128 64 128'")
    if len(classes) > IGNORE or len(ids) > _MOST_COLOURS:
        raise InputError(
            f"{path}: {len(classes)} classes and {len(ids)} colours; at most {IGNORE} classes and "
            f"{_MOST_COLOURS} colours are read"
        )
    return ColourTable(tuple(classes), ids)


def count_colours(paths: Iterable[Path]) -> dict[Colour, int]:
    """Pixels of each colour in mask files, in the order of red, green, blue.

    Raises:
        InputError: a file cannot be read, or there are more colours than classes can be.
    """
    counts: Counter[int] = Counter()
    for path in paths:
        values, pixels = np.unique(_read_codes(path), return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        if len(counts) > IGNORE:
            raise InputError(
                f"{path}: with it, the masks have {len(counts)} colours, and classes are at most "
                f"{IGNORE}: edges are blended, as JPEG or resizing does, or these are photographs; "
                "give the colours of the classes as a table"
            )
    return {_colour(code): counts[code] for code in sorted(counts)}


def holds_colours(path: Path) -> bool:
    """Whether a mask file has colours rather than one value per pixel; only its header is read.

    Raises:
        InputError: the file cannot be read.
    """
    with open_image(path, "mask", MASK_FORMATS) as (image, _):
        return image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


def hex_names(colours: Iterable[Colour]) -> ColourTable:
    """A table that gives each colour a class named by it.

    >>> hex_names([(0, 0, 0), (255, 128, 0)]).classes
    ('#000000', '#ff8000')
    """
    ids = {colour: number for number, colour in enumerate(colours)}
    return ColourTable(tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in ids), ids)


def _read_codes(path: Path) -> NDArray[np.int32]:
    """The colours of a mask file as numbers 0xrrggbb, (H, W)."""
    with open_image(path, "mask", MASK_FORMATS) as (image, _):
        if image.mode.startswith(("I", "F")):
            raise InputError(f"{path}: mask has more than 8 bits per channel; save colours as PNG")
        rgb = np.asarray(image.convert("RGB"), dtype=np.int32)  # (H, W, 3)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


@lru_cache(maxsize=2)
def _lookup(entries: tuple[tuple[Colour, int], ...]) -> NDArray[np.int16]:
    """The id of each of the 2**24 colours, -1 where there is none."""
    ids = np.full(2**24, -1, np.int16)
    for (red, green, blue), number in entries:
        ids[red << 16 | green << 8 | blue] = number
    return ids


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _shown(colour: Colour) -> str:
    return "({}, {}, {})".format(*colour)
