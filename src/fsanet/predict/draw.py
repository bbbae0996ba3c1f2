"""Drawing of masks and instances: colours, boundaries, legend, names.

Shapes: N instances, (H, W) image; arrays are channels-last, as in Pillow.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import numbers
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from isal import isal_zlib as zlib  # four times faster than Python's own at the lowest level
from PIL import Image, ImageDraw, ImageFont

from fsanet.data.masks import Colour, class_palette
from fsanet.errors import InputError, printable

Entry = tuple[str, Colour, float]  # name, colour, fraction of the image
Array = np.ndarray[Any, Any]

UNLABELLED: Colour = (128, 128, 128)
TEXT: Colour = (32, 32, 32)
_BACKGROUND: Colour = (255, 255, 255)
_ABOVE, _BELOW = (214, 35, 35), (25, 85, 215)
_MAX_ENLARGEMENT = 8
_READABLE_SIDE = 192  # pixels
_INSTANCE_COLOURS = 24  # further instances repeat them
_BAND_PIXELS = 2**16  # of an overlay, drawn at a time: what the caches hold


def full_palette(palette: Sequence[Colour]) -> list[int]:
    """256 colours in the format of Pillow; ids without a class are grey."""
    colours = [*palette, *[UNLABELLED] * (256 - len(palette))]
    return [int(value) for colour in colours for value in colour]


def colourise(mask: Array, palette: Sequence[Colour]) -> Array:
    """Class ids uint8 (H, W) -> uint8 (H, W, 3)."""
    table = np.array(full_palette(palette), dtype=np.uint8).reshape(256, 3)
    return table[mask]  # (H, W, 3)


def find_boundaries(mask: Array, thickness: int = 1) -> Array:
    """True where the neighbour to the right or below has another value, bool (H, W)."""
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


class Picture(NamedTuple):
    """An RGB picture that is made band by band: its size, and uint8 (r, width, 3) from the top."""

    width: int
    height: int
    bands: Iterator[Array]

    def to_image(self) -> Image.Image:
        """The whole picture; Pillow holds 4 bytes for each pixel."""
        image = Image.new("RGB", (self.width, self.height))
        top = 0
        for band in self.bands:
            image.paste(Image.fromarray(band), (0, top))
            top += len(band)
        return image

    def write_png(self, stream: BinaryIO) -> None:
        """Write a PNG file, of which only a band exists at a time.

        Lines are filtered by the one above and compressed at the lowest level by ISA-L: a twentieth
        of the time that Pillow takes, for a file that is a tenth larger.
        """
        _write_png(stream, self)


def overlay(
    mask: Array,
    palette: Sequence[Colour],
    image: Array | None = None,
    *,
    alpha: float = 0.5,
    boundaries: bool = True,
    legend: Sequence[Entry] | None = None,
) -> Picture:
    """Blend class colours over an image.

    Args:
        mask: uint8 (H, W); ids beyond the palette leave the image unchanged.
        palette: colours by id.
        image: uint8 (H, W, 3); None draws only the colours.
        alpha: opacity of the colours, 0 to 1.
        boundaries: draw lines between classes.
        legend: entries listed below a wide image, or beside a tall one.

    Raises:
        InputError: ``alpha`` is out of range.
    """
    check_alpha(alpha)
    if legend is not None:
        factor = enlargement(*mask.shape)
        if factor > 1:
            mask = mask.repeat(factor, 0).repeat(factor, 1)
            image = None if image is None else image.repeat(factor, 0).repeat(factor, 1)
    height, width = mask.shape
    bands = _blend(mask, palette, image, alpha, boundaries)
    return beside_legend(Picture(width, height, bands), legend or ())


def _blend(
    mask: Array, palette: Sequence[Colour], image: Array | None, alpha: float, boundaries: bool
) -> Iterator[Array]:
    height, width = mask.shape
    thickness = max(1, round(min(mask.shape) / 400))
    rows = max(1, _BAND_PIXELS // width)
    tables = _blend_tables(palette, alpha)
    for top in range(0, height, rows):
        stop = min(top + rows, height)
        ids = mask[top:stop]
        if image is None:
            yield colourise(ids, palette)  # (r, W, 3)
            continue
        row = np.minimum(ids.astype(np.int32), len(palette)) * 256  # (r, W)
        blend = np.empty((*ids.shape, 3), np.uint8)
        for channel, table in enumerate(tables):
            index = row + image[top:stop, :, channel]
            blend[..., channel] = table.take(index, mode="clip")  # none is: skips a check
        if boundaries:
            # Lines reach down from the rows above, and depend on the next row.
            first = max(0, top - thickness + 1)
            edge = find_boundaries(mask[first : stop + 1], thickness)[top - first : stop - first]
            # The full colour, halfway to white, stands out on dark and on bright images.
            blend[edge] = colourise(ids[edge], palette) // 2 + 128
        yield blend


def _blend_tables(palette: Sequence[Colour], alpha: float) -> Array:
    """Blended values by channel and 256 * id + value; the id after the last leaves them unchanged.

    Returns:
        uint8 (3, 256 * (classes + 1)).
    """
    colours = np.array([*palette, UNLABELLED], np.uint8)[..., None]  # (C + 1, 3, 1)
    weight = np.full((len(colours), 1, 1), np.float32(alpha))
    weight[-1] = 0
    blend = np.arange(256, dtype=np.uint8) * (1 - weight) + colours * weight + np.float32(0.5)
    return blend.astype(np.uint8).transpose(1, 0, 2).reshape(3, -1)


def beside_legend(
    picture: Picture, entries: Sequence[Entry], letters: int | None = None
) -> Picture:
    """The picture with class names, colours and areas below it (wide) or beside it (tall).

    Args:
        picture: without a legend.
        entries: of the legend.
        letters: their height in pixels; by default it follows from the size of the picture.
    """
    if not entries:
        return picture
    width, height, bands = picture
    below = width >= height
    if letters is None:
        letters = int(min(40, max(12, min(width, height) / 24)))
    legend = _legend((width, height), entries, below, letters)  # uint8 (h, w, 3)
    if below:
        size = max(width, legend.shape[1]), height + len(legend)
    else:
        size = width + legend.shape[1], max(height, len(legend))
    white = np.uint8(255)

    def rows() -> Iterator[Array]:
        top = 0
        for band in bands:
            row = np.full((len(band), size[0], 3), white)
            row[:, :width] = band
            if not below:
                beside = legend[top : top + len(band)]
                row[: len(beside), width:] = beside
            top += len(band)
            yield row
        rest = np.full((size[1] - height, size[0], 3), white)
        left, part = (0, legend) if below else (width, legend[height:])
        rest[: len(part), left : left + part.shape[1]] = part
        if len(rest):
            yield rest

    return Picture(*size, rows())


def _legend(size: tuple[int, int], entries: Sequence[Entry], below: bool, letters: int) -> Array:
    """The legend for a picture of this width and height, uint8 (h, w, 3)."""
    width, height = size
    pad, row = letters // 2, round(letters * 1.6)
    labels = [
        (_text(printable(name), letters), colour, _text(percent(share), letters))
        for name, colour, share in entries
    ]
    name_width = max(name.width for name, _, _ in labels)
    share_width = max(share.width for _, _, share in labels)
    # Swatch, gap, name, gap, share, gap before the next column.
    column = letters + pad + name_width + pad + share_width + 3 * pad
    if below:
        columns = max(1, min(len(labels), (width - pad) // column))
        rows = math.ceil(len(labels) / columns)
        columns = math.ceil(len(labels) / rows)  # of nearly equal length
        canvas_size, left = (pad + columns * column, rows * row + 2 * pad), pad
    else:
        rows = max(1, min(len(labels), (height - 2 * pad) // row))
        columns = math.ceil(len(labels) / rows)
        canvas_size, left = (pad + columns * column, rows * row + 2 * pad), 2 * pad
    canvas = Image.new("RGB", canvas_size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (name, colour, share) in enumerate(labels):
        x = left + index // rows * column
        middle = pad + index % rows * row + row // 2
        box = (x, middle - letters // 2, x + letters, middle + letters // 2)
        draw.rectangle(box, fill=colour, outline=TEXT)
        name_left = x + letters + pad
        share_left = name_left + name_width + pad + share_width - share.width
        for text, start in ((name, name_left), (share, share_left)):
            canvas.paste(TEXT, (start, middle - text.height // 2), text)
    return np.asarray(canvas)


@functools.lru_cache(maxsize=1024)
def _text(text: str, letters: int) -> Image.Image:
    """A line of text as a mask (mode L), drawn once for all pictures."""
    type_face = font(letters)
    mask = Image.new("L", (math.ceil(type_face.getlength(text)), 2 * letters))
    ImageDraw.Draw(mask).text((0, letters), text, fill=255, font=type_face, anchor="lm")
    return mask


def _write_png(stream: BinaryIO, picture: Picture) -> None:
    def write_chunk(kind: bytes, data: bytes) -> None:
        stream.write(struct.pack(">I", len(data)) + kind + data)
        stream.write(struct.pack(">I", zlib.crc32(kind + data)))

    stream.write(b"\x89PNG\r\n\x1a\n")
    header = (picture.width, picture.height, 8, 2, 0, 0, 0)  # 8-bit RGB
    write_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    deflate = zlib.compressobj(1)
    above = np.zeros((1, 3 * picture.width), np.uint8)
    for band in picture.bands:
        lines = band.reshape(len(band), -1)  # (r, 3 W)
        # Filter 2: the differences to the line above, modulo 256.
        filtered = np.full((len(lines), 1 + lines.shape[1]), np.uint8(2))
        np.subtract(lines[:1], above, out=filtered[:1, 1:])
        np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
        above = lines[-1:].copy()
        write_chunk(b"IDAT", deflate.compress(filtered.data))
    write_chunk(b"IDAT", deflate.flush())
    write_chunk(b"IEND", b"")


def heat_map(
    values: Array,
    image: Array,
    *,
    at: tuple[int, int] | None = None,
    centre: float = 0.0,
    largest: float | None = None,
    quantile: float = 1.0,
) -> Image.Image:
    """Draw values over the grey image: red where they are above ``centre``, blue where below.

    Args:
        values: (h, w), on a grid whose cells divide the image.
        image: uint8 (3, H, W); one too small for the marker is enlarged by an integer factor.
        at: (x, y) of a pixel to mark.
        centre: the value that leaves the image grey.
        largest: distance from the centre that has the full colour; by default the largest.
        quantile: share of the values that are not cut off at the full colour, if ``largest`` is not
            given.
    """
    deviation = np.asarray(values, np.float64) - centre  # (h, w)
    if largest is None:
        largest = float(np.quantile(np.abs(deviation), quantile))
    height, width = image.shape[1:]
    rows = np.arange(height) * deviation.shape[0] // height
    columns = np.arange(width) * deviation.shape[1] // width
    strength = np.clip(deviation / max(largest, 1e-30), -1, 1)[rows[:, None], columns]  # (H, W)
    colours = np.where(strength[..., None] > 0, _ABOVE, _BELOW)  # (H, W, 3)
    weight = np.abs(strength)[..., None] ** 0.75 * 0.85
    grey = image.astype(np.float32).mean(0)[..., None] * 0.75 + 32  # (H, W, 1)
    pixels = (grey * (1 - weight) + colours * weight + 0.5).astype(np.uint8)
    factor = enlargement(height, width)
    picture = Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))
    if at is not None:
        _mark(picture, (at[0] + 0.5) * factor, (at[1] + 0.5) * factor)
    return picture


def enlargement(height: int, width: int) -> int:
    """The integer factor by which a picture too small for a legend or a marker is enlarged."""
    return min(_MAX_ENLARGEMENT, math.ceil(_READABLE_SIDE / min(height, width)))


def _mark(picture: Image.Image, x: float, y: float) -> None:
    """Draw a ring around a point, white within black, so that it stands out anywhere."""
    radius = max(5, min(picture.size) / 36)
    line = max(2, round(radius / 4))
    canvas = ImageDraw.Draw(picture)
    for width, colour in ((line + 2, (0, 0, 0)), (line, (255, 255, 255))):
        r = radius + width / 2
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=width)


def instance_colours(count: int) -> list[Colour]:
    """A colour for each instance."""
    colours = class_palette(None, _INSTANCE_COLOURS)
    return [colours[index % _INSTANCE_COLOURS] for index in range(count)]


def instance_overlay(
    image: Array,
    masks: Array,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str] | None = None,
    *,
    alpha: float = 0.5,
) -> Image.Image:
    """Draw instances over an image, the first on top.

    Args:
        image: uint8 (H, W, 3).
        masks: bool (N, H, W).
        boxes: (x0, y0, x1, y1) in pixels.
        texts: written at the boxes.
        alpha: opacity of the masks' colours, 0 to 1.

    Raises:
        InputError: ``alpha`` is out of range.
    """
    check_alpha(alpha)
    pixels = image.astype(np.float32)  # (H, W, 3)
    colours = instance_colours(len(masks))
    thickness = max(1, round(min(pixels.shape[:2]) / 300))
    bottom_up = list(reversed(range(len(masks))))
    for index in bottom_up:
        mask, colour = masks[index], np.array(colours[index], np.float32)
        pixels[mask] = pixels[mask] * (1 - alpha) + colour * alpha
        pixels[find_boundaries(mask.astype(np.uint8), thickness)] = colour
    picture = Image.fromarray((pixels + 0.5).clip(0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for index in bottom_up:
        canvas.rectangle(tuple(boxes[index]), outline=colours[index], width=thickness)
    if texts is not None:
        for index in bottom_up:
            _write_at_box(canvas, texts[index], boxes[index], colours[index], picture.size)
    return picture


def _write_at_box(
    canvas: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    colour: Colour,
    size: tuple[int, int],
) -> None:
    text = printable(text)
    face = font(int(min(28, max(10, min(size) / 32))))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=face)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else box[1]  # inside the box if there is no room above
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    bright = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    canvas.text((x + 3 - left, y + 3 - top), text, fill=ink, font=face)


def check_alpha(alpha: float) -> None:
    """Raise `InputError` unless ``alpha`` is in 0 to 1."""
    if not isinstance(alpha, numbers.Real) or not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; give the opacity of the colours, 0 to 1")


def percent(share: float) -> str:
    """A fraction of 0..1 as text; only 0 and 1 themselves are shown as 0 % and 100 %.

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
    """A sans-serif font of ``size`` pixels, the same on every machine."""
    # Matplotlib's, because Pillow's own font has few letters beyond ASCII.
    package = importlib.util.find_spec("matplotlib")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)
