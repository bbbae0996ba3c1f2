"""Label masks: one 8-bit class id per pixel, and the names and colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fsanet.data.images import open_image
from fsanet.errors import InputError, check_range, is_unicode, one_line

__all__ = [
    "IGNORE",
    "MASK_SUFFIXES",
    "Colour",
    "IdTable",
    "check_ids",
    "class_names",
    "class_palette",
    "look_up",
    "looks_scaled",
    "ranges",
    "read_instances",
    "read_mask",
    "read_numbers",
]

#: (r, g, b) in 0..255.
Colour = tuple[int, int, int]

#: Formats of mask files: those that keep every value.
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".pgm"})
MASK_FORMATS = ("PNG", "BMP", "TIFF", "PPM")

#: Id of unlabelled pixels in the published data sets.
IGNORE = 255
_INVALID = 254  # never a class: the data sets with an IdTable have fewer


def read_mask(path: str | Path) -> Tensor:
    """Read a mask file: the values of greyscale and 1-bit files, the indices of palette files.

    Returns:
        uint8 tensor (H, W) of class ids.

    Raises:
        InputError: the file cannot be read, or holds colours or more than 8 bits per pixel.
    """
    with open_image(Path(path), "mask", MASK_FORMATS) as (image, _):
        mode = image.mode
        values = np.array(image, dtype=np.uint8) if mode in ("L", "P", "1") else None  # (H, W)
    if values is not None:
        return torch.from_numpy(values)
    if mode.startswith(("I", "F")):
        fault = f"mask has more than 8 bits per pixel (mode {mode})"
    else:
        fault = f"mask holds colours (mode {mode}) instead of one class id per pixel"
    raise InputError(
        f"{path}: {fault}; save class ids as an 8-bit greyscale or palette PNG, or give the "
        "colours of your own data with colours=TABLE.txt or colours=auto"
    )


def read_instances(path: str | Path) -> Tensor:
    """Read a mask file that numbers instances: uint8 (H, W), 0 where it is 0 and 1 elsewhere.

    Raises:
        InputError: see `read_numbers`.
    """
    return (read_numbers(path) != 0).to(torch.uint8)


def read_numbers(path: str | Path) -> Tensor:
    """Read a mask file that numbers instances, or gives each a colour: 0 or black is none.

    Returns:
        int64 tensor (H, W) of numbers; those of colours are 65536 r + 256 g + b.

    Raises:
        InputError: the file cannot be read, or holds fractions.
    """
    with open_image(Path(path), "mask", MASK_FORMATS) as (image, _):
        if image.mode == "F":
            raise InputError(f"{path}: mask holds fractions (mode F); save whole numbers as PNG")
        values = np.asarray(image).astype(np.int64)  # (H, W) or (H, W, channels)
        if image.mode in ("LA", "RGBA"):
            values = values[..., :-1]  # without opacity
    channels = values.reshape(*values.shape[:2], -1)
    places = 256 ** np.arange(channels.shape[-1])[::-1]
    return torch.from_numpy(channels @ places)


class IdTable:
    """Maps the values of a published data set's label files to class ids.

    Args:
        title: name of the data set, for error messages.
        ids: class id, or ``IGNORE``, for each valid value.

    >>> table = IdTable("toy", {0: IGNORE, 1: 0, 2: 1})
    >>> table(torch.tensor([[0, 1, 2]], dtype=torch.uint8), "a.png").tolist()
    [[255, 0, 1]]
    """

    def __init__(self, title: str, ids: Mapping[int, int]) -> None:
        self.title = title
        self.valid = ranges(ids)
        self.table = torch.full((256,), _INVALID, dtype=torch.uint8)
        for value, label in ids.items():
            self.table[value] = label

    def __call__(self, values: Tensor, path: str | Path) -> Tensor:
        """Map the values of a file, uint8 (H, W), to class ids, uint8 (H, W).

        Raises:
            InputError: naming the file and the values that are not in the table.
        """
        labels = look_up(values, self.table)
        invalid = labels == _INVALID
        if invalid.any():
            found = values[invalid].unique().tolist()
            ids = "id {} is" if len(found) == 1 else "ids {} are"
            raise InputError(
                f"{path}: {ids.format(ranges(found))} out of range for {self.title} "
                f"({self.valid}); replace the file by the published one"
            )
        return labels


def look_up(values: Tensor, table: Tensor) -> Tensor:
    """Return ``table[values]`` for uint8 values of any shape and a uint8 table (256,).

    Pillow does this several times as fast as indexing in torch or NumPy.
    """
    flat = Image.fromarray(values.contiguous().reshape(1, -1).numpy())
    found = bytearray(flat.point(table.tolist()).tobytes())
    return torch.frombuffer(found, dtype=torch.uint8).reshape(values.shape)


def check_ids(mask: Tensor, path: str | Path, num_classes: int, ignore_index: int) -> Tensor:
    """Return a mask whose ids are all in ``0..num_classes-1`` or equal to ``ignore_index``.

    Args:
        mask: uint8 (H, W).
        path: file to name in the error message.

    Raises:
        InputError: naming the file, the wrong ids, and the likely cause.
    """
    values = mask.numpy()
    wrong = (values >= num_classes) & (values != ignore_index)
    if not wrong.any():
        return mask
    found = np.unique(values[wrong])
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    raise InputError(
        f"{path}: class {'id' if len(found) == 1 else 'ids'} {shown} out of range for "
        f"{num_classes} classes (0..{num_classes - 1}, {ignore_index} = ignore); "
        + _likely_cause(np.unique(values), found, num_classes, ignore_index)
    )


def _likely_cause(
    present: NDArray[np.uint8], wrong: NDArray[np.uint8], num_classes: int, ignore_index: int
) -> str:
    if num_classes == 2 and set(present.tolist()) <= {0, 255}:
        return "this looks like a 0/255 mask: divide it by 255"
    if wrong.tolist() == [num_classes]:
        return (
            f"ids look shifted by one: subtract 1 if they run from 1 to {num_classes} "
            f"(0 becomes {ignore_index}), or set num_classes={num_classes + 1}"
        )
    return f"raise num_classes to at least {int(wrong.max()) + 1}, or map them to {ignore_index}"


def looks_scaled(paths: list[Path]) -> bool:
    """Whether all masks of a two-class data set hold only 0 and 255, where 255 means ignore.

    One mask of 0 and 255 is valid, but a whole set without a single 1 is a set of 0/255 masks.
    For a valid set a few masks are enough to tell; only a suspicious one is read to the end.
    """
    step = max(1, len(paths) // 8)
    has_255 = False
    # A spread sample first: neighbouring files are often alike.
    for path in [*paths[::step], *(p for i, p in enumerate(paths) if i % step)]:
        try:
            present = np.unique(read_mask(path).numpy())
        except InputError:
            continue  # reported with its own message when the item is read
        if any(0 < value < 255 for value in present.tolist()):
            return False
        has_255 |= bool((present == 255).any())
    return has_255


def class_names(classes: Sequence[str] | None, num_classes: int | None = None) -> tuple[str, ...]:
    """Check the names of the classes, or make up ``"class 0"``, ``"class 1"``, ... from a number.

    Raises:
        InputError: neither is given, they disagree, or a name occurs twice.
    """
    if classes is not None:
        names = tuple(classes)
        if isinstance(classes, str) or not all(
            isinstance(name, str) and is_unicode(name) for name in names
        ):
            raise InputError("classes: give a list of names (text)")
        if num_classes is not None and num_classes != len(names):
            raise InputError(f"num_classes={num_classes}, but {len(names)} class names are given")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"classes: {', '.join(twice)} given twice; give each name once")
    elif num_classes is not None:
        check_range("num_classes", num_classes, 1, 255)
        names = tuple(f"class {i}" for i in range(num_classes))
    else:
        raise InputError("the classes are unknown: give classes=[names] or num_classes")
    if not 1 <= len(names) <= 255:
        raise InputError(f"{len(names)} classes: 8-bit masks hold 1 to 255 classes")
    return names


def class_palette(palette: Sequence[Sequence[int]] | None, num_classes: int) -> tuple[Colour, ...]:
    """Check the colours of the classes, or choose distinct ones.

    Raises:
        InputError: the number of colours is wrong, or one is not (r, g, b) in 0..255.

    >>> class_palette(None, 2)
    ((217, 65, 65), (65, 109, 217))
    """
    if palette is None:
        # Steps of the golden ratio spread the hues evenly for any number of classes.
        hues = [(i * 0.618034) % 1 for i in range(num_classes)]
        values = [(0.85, 0.6, 0.95)[i // 8 % 3] for i in range(num_classes)]
        colours = [colorsys.hsv_to_rgb(h, 0.7, v) for h, v in zip(hues, values, strict=True)]
        return tuple((round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colours)
    if len(palette) != num_classes:
        raise InputError(f"palette has {len(palette)} colours for {num_classes} classes")
    try:
        given = [(int(r), int(g), int(b)) for r, g, b in palette]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"palette colours are (r, g, b) ({one_line(error)})") from error
    if not all(0 <= value <= 255 for colour in given for value in colour):
        raise InputError("palette colours are (r, g, b) with values in 0..255")
    return tuple(given)


def ranges(values: Iterable[int]) -> str:
    """Integers in short form.

    >>> ranges([255, 0, 1, 2, 7])
    '0..2, 7, 255'
    """
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
