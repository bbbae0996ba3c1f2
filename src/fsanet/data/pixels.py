"""Pixel arithmetic for augmentation: the results of torchvision's operations in less time."""

# C channels, (H, W) size of the input, (h, w) size of the region

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nn_functional
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fsanet.data.masks import look_up

__all__ = ["Region", "offset_and_scale", "resized_ids", "resized_pixels", "shift_hue"]

_PIXELS = 65536  # converted to floating point at a time, so that they stay in the CPU cache


class Region(NamedTuple):
    """A rectangle of ``height`` x ``width`` pixels of a resized image."""

    top: int
    left: int
    height: int
    width: int


def resized_pixels(image: Tensor, size: tuple[int, int], region: Region) -> Tensor:
    """Resize an image bilinearly with anti-aliasing, computing only a region of the result.

    Equal to torchvision's resize of the whole followed by a crop: bit for bit where torch resizes
    uint8 natively (x86 with AVX2), within one level elsewhere.

    Args:
        image: (C, H, W), uint8 or floating point; fastest in the channels-last order that
            decoders return.
        size: (height, width) of the whole resized image.
        region: the part of it to compute.

    Returns:
        (C, h, w) with the dtype of ``image``.
    """
    channels, rows, columns = image.shape
    top, left, height, width = region
    if size == (rows, columns):
        return F.crop_image(image, *region)
    # Resizing treats the axes one after the other, so each can be cropped as soon as it is done.
    # The axis being resized has to be complete: positions are counted from its start.
    step = rows / size[0]
    reach = max(1.0, step) + 1  # radius of the filter plus one pixel
    first = max(0, int((top + 0.5) * step - reach))
    last = min(rows, int((top + height - 0.5) * step + reach) + 1)
    strip = F.resize_image(image[:, first:last], [last - first, size[1]], antialias=True)
    strip = strip[..., left : left + width]  # (C, last - first, w)
    if size[0] == rows:
        return strip[:, top - first : top - first + height]
    # Rows outside of the strip stay uninitialised: no pixel of the region depends on them.
    padded = image.new_empty((rows, width, channels)).permute(2, 0, 1)  # (C, H, w)
    padded[:, first:last] = strip
    return F.resize_image(padded, [size[0], width], antialias=True)[:, top : top + height]


def resized_ids(mask: Tensor, size: tuple[int, int], region: Region) -> Tensor:
    """Resize a mask to the id nearest to each pixel's centre, computing only a region.

    Args:
        mask: (..., H, W) of any dtype.
        size: (height, width) of the whole resized mask.
        region: the part of it to compute.

    Returns:
        (..., h, w) with the dtype of ``mask``.
    """
    top, left, height, width = region
    if size == tuple(mask.shape[-2:]):
        return mask[..., top : top + height, left : left + width]
    rows = _nearest(mask.shape[-2], size[0])[top : top + height]
    columns = _nearest(mask.shape[-1], size[1])[left : left + width]
    # NumPy gathers bytes twice as fast as torch.
    needed = mask.numpy()[..., columns[0] : columns[-1] + 1]
    return torch.from_numpy(needed.take(rows, -2).take(columns - columns[0], -1))


def _nearest(length: int, size: int) -> NDArray[np.int64]:
    """Source index int64 (size,) of each pixel along an axis, chosen by torch itself."""
    # float32, which torchvision uses for masks: in float64 some centres round to the other side.
    index: Any = torch.arange(length, dtype=torch.float32)[None, None]  # (1, 1, length)
    return nn_functional.interpolate(index, size=size, mode="nearest-exact")[0, 0].long().numpy()


def offset_and_scale(image: Tensor, offset: float, scale: float) -> Tensor:
    """Add ``offset`` to a uint8 image, then multiply by ``scale``, clamping to 0..255 each time.

    >>> offset_and_scale(torch.tensor([10, 100, 250], dtype=torch.uint8), 20.0, 0.5).tolist()
    [15, 60, 128]
    """
    if scale == 1 and offset == 0:
        return image
    table = torch.arange(256.0).add_(offset).clamp_(0, 255).mul_(scale).round_().clamp_(0, 255)
    return look_up(image, table.to(torch.uint8))


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """Shift the hue of an image, keeping saturation and value in the sense of HSV.

    Within one level of torchvision's ``adjust_hue``, which distinguishes six cases per pixel.
    Here each channel is ``V - C clamp(2 - |k - 2|, 0, 1)``, where V is the largest channel, C its
    distance to the smallest, and k the hue in sixths of a turn plus 5, 3 or 1 (modulo 6).

    Args:
        image: uint8 (3, H, W).
        shift: fraction of a full turn, -0.5..0.5.

    Returns:
        uint8 (3, H, W).
    """
    out = torch.empty_like(image)
    offsets = torch.tensor([5.0, 3.0, 1.0])[:, None, None]
    rows = max(1, _PIXELS // image.shape[-1])
    for source, target in zip(image.split(rows, -2), out.split(rows, -2), strict=True):
        pixels = source.float()  # (3, rows, W)
        red, green, blue = pixels
        value = torch.maximum(torch.maximum(red, green), blue)
        chroma = value - torch.minimum(torch.minimum(red, green), blue)
        share = chroma.clamp(min=1).reciprocal_()
        hue = torch.where(
            value == red,
            (green - blue) * share,
            torch.where(value == green, (blue - red) * share + 2, (red - green) * share + 4),
        )
        hue.add_(6 * shift)  # -1..5 before
        if abs(shift) > 1 / 6:
            hue.remainder_(6)
        # k is in -1..11, where the distance to the nearer of 2 and 8 is ||k - 5| - 3|.
        k = (hue + offsets).sub_(5).abs_().sub_(3).abs_()  # (3, rows, W)
        k.neg_().add_(2).clamp_(0, 1).mul_(chroma)
        target.copy_(torch.sub(value, k, out=k))
    return out
