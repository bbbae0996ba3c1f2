"""Label masks: one 8-bit class id a pixel, and what is commonly wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fsanet.errors import InputError

#: What a mask file may be: formats that keep every value.
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".pgm"})

# Pillow's decoders raise all of these on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError)


def read_mask(path: str | Path) -> Tensor:
    """Read a mask file.

    Greyscale and black-and-white files give their values, palette files their indices.

    Returns:
        uint8 tensor (H, W) of class ids.

    Raises:
        InputError: for a file that cannot be read, or holds colours or more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise InputError(_refused_mode(path, image.mode))
            values = np.array(image, dtype=np.uint8)  # (H, W); mode P gives indices
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such mask file") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{path}: mask cannot be read (truncated, or not an image); remove or replace it"
        ) from error
    return torch.from_numpy(values)


def _refused_mode(path: str | Path, mode: str) -> str:
    if mode.startswith(("I", "F")):
        what = f"mask has more than 8 bits a pixel (mode {mode})"
    else:
        what = f"mask holds colours (mode {mode}), not one class id a pixel"
    return f"{path}: {what}; save class ids as an 8-bit greyscale or palette PNG"


def check_ids(mask: Tensor, path: str | Path, num_classes: int, ignore_index: int) -> None:
    """Refuse a mask with ids outside ``0..num_classes-1`` other than ``ignore_index``.

    Args:
        mask: uint8 (H, W).
        path: file to name in the message.

    Raises:
        InputError: naming the file, the values, and the likely cause.
    """
    values = mask.numpy()
    wrong = (values >= num_classes) & (values != ignore_index)
    if not wrong.any():
        return
    found = np.unique(values[wrong])
    shown = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
    ids = "id" if len(found) == 1 else "ids"
    raise InputError(
        f"{path}: class {ids} {shown} out of range for {num_classes} classes "
        f"(0..{num_classes - 1}, {ignore_index} = ignore); "
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
    """Whether the masks of a two-class set hold 0 and 255 alone, where 255 means ignore.

    A mask of 0 and 255 is valid by itself; a whole set without a single 1 is a set of 0/255
    masks. A few masks settle it for a sound set; only a suspicious one is read to its end.
    """
    step = max(1, len(paths) // 8)
    holds_255 = False
    # The spread sample first: files that lie side by side are often alike.
    for path in [*paths[::step], *(p for i, p in enumerate(paths) if i % step)]:
        try:
            present = np.unique(read_mask(path).numpy())
        except InputError:
            continue  # reported with its own message when the item is read
        if any(0 < value < 255 for value in present.tolist()):
            return False
        holds_255 |= bool((present == 255).any())
    return holds_255
