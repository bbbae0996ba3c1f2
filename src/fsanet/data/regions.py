"""A part of a resized image, without resizing the rest of it.

The result is that of torchvision's resize of the whole and a crop, bit for bit where uint8 images
are resized as such (x86 with AVX2), and within one level elsewhere.
"""

# C channels, H W size of the input, (h, w) size of the part

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nn_functional
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

__all__ = ["Region", "resized_ids", "resized_pixels"]


class Region(NamedTuple):
    """``height`` x ``width`` pixels from (``top``, ``left``) on, in pixels of the resized image."""

    top: int
    left: int
    height: int
    width: int


def resized_pixels(image: Tensor, size: tuple[int, int], region: Region) -> Tensor:
    """Part of an image that is resized bilinearly with anti-aliasing.

    Args:
        image: (C, H, W), uint8 or floating point; fastest where the channels of a pixel lie side
            by side in memory, as decoders leave them.
        size: (height, width) that the whole would be resized to.
        region: the part, inside of ``size``.

    Returns:
        (C, h, w) of the dtype of ``image``.
    """
    channels, rows, columns = image.shape
    top, left, height, width = region
    if size == (rows, columns):
        return F.crop_image(image, *region)
    # Resizing takes rows and columns one after the other, so either can be cut after its turn.
    # The whole axis has to be there in its turn: positions count from its start.
    step = rows / size[0]
    reach = max(1.0, step) + 1  # of the filter, and a pixel to be safe
    first = max(0, int((top + 0.5) * step - reach))
    last = min(rows, int((top + height - 0.5) * step + reach) + 1)
    strip = F.resize_image(image[:, first:last], [last - first, size[1]], antialias=True)
    strip = strip[..., left : left + width]  # (C, last - first, w)
    if size[0] == rows:
        return strip[:, top - first : top - first + height]
    # Rows that no pixel of the part depends on are left as they are.
    padded = image.new_empty((rows, width, channels)).permute(2, 0, 1)  # (C, H, w)
    padded[:, first:last] = strip
    return F.resize_image(padded, [size[0], width], antialias=True)[:, top : top + height]


def resized_ids(mask: Tensor, size: tuple[int, int], region: Region) -> Tensor:
    """Part of a mask whose every pixel takes the id nearest to its centre.

    Args:
        mask: (..., H, W) of any dtype.
        size: (height, width) that the whole would be resized to.
        region: the part, inside of ``size``.

    Returns:
        (..., h, w) of the same dtype.
    """
    top, left, height, width = region
    if size == tuple(mask.shape[-2:]):
        return mask[..., top : top + height, left : left + width]
    rows = _nearest(mask.shape[-2], size[0])[top : top + height]
    columns = _nearest(mask.shape[-1], size[1])[left : left + width]
    # NumPy takes bytes twice as fast as torch.
    needed = mask.numpy()[..., columns[0] : columns[-1] + 1]
    return torch.from_numpy(needed.take(rows, -2).take(columns - columns[0], -1))


def _nearest(length: int, size: int) -> NDArray[np.int64]:
    """Source index int64 (size,) of each pixel of an axis, chosen by torch itself."""
    # float32, as torchvision takes for masks: in float64 some centres round to the other side.
    index: Any = torch.arange(length, dtype=torch.float32)[None, None]  # (1, 1, length)
    return nn_functional.interpolate(index, size=size, mode="nearest-exact")[0, 0].long().numpy()
