"""Sliding-window logits that come out row by row.

An image is covered by a grid of windows whose logits are averaged where they overlap. Only a
band of sums as high as one window is kept: rows that no later window touches are finished, handed
on, and forgotten.

Shapes: B images, C classes, (H, W) an image, (h, w) a window, r rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# uint8 (b, 3, h', w') and the window (h, w) it is to be padded to -> float32 (b, C, h, w)
Forward = Callable[[Tensor, tuple[int, int]], Tensor]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of the windows along one axis; the last window ends at the border.

    >>> window_starts(10, 4, 3)
    [0, 3, 6]
    >>> window_starts(11, 4, 3)
    [0, 3, 6, 7]
    >>> window_starts(3, 4, 3)
    [0]
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def sliding_rows(
    images: Tensor,
    forward: Forward,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
) -> Iterator[Tensor]:
    """Yield the averaged logits of ``images`` from top to bottom.

    Args:
        images: uint8 (B, 3, H, W).
        forward: the model for up to ``batch_size`` tiles at once. An image smaller than the window
            gives smaller tiles, which ``forward`` pads at the bottom and the right.
        window, stride: pixels, (vertical, horizontal); stride <= window.

    Yields:
        float32 (B, C, r, W); the r add up to H, each is at most h.

    Memory besides the model's own: a band of (B, C, h, W) float32, and the rows being yielded.
    """
    count, _, height, width = images.shape
    tops = window_starts(height, window[0], stride[0])
    lefts = window_starts(width, window[1], stride[1])
    tile = min(window[0], height), min(window[1], width)
    places = [(image, left) for image in range(count) for left in lefts]
    across = torch.zeros(width)  # windows over each column
    for left in lefts:
        across[left : left + tile[1]] += 1
    down = torch.zeros(tile[0])  # windows so far over each row of the band
    band: Tensor | None = None
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        strip = images[:, :, top : top + tile[0]]  # (B, 3, h', W)
        for first in range(0, len(places), batch_size):
            chosen = places[first : first + batch_size]
            tiles = torch.stack([strip[i, :, :, x : x + tile[1]] for i, x in chosen])
            logits = forward(tiles, window)[:, :, : tile[0], : tile[1]]  # (b, C, h', w')
            if band is None:
                band = logits.new_zeros(count, logits.shape[1], tile[0], width)
                across, down = across.to(band.device), down.to(band.device)
            for (image, left), one in zip(chosen, logits, strict=True):
                band[image, :, :, left : left + tile[1]] += one
        if band is None:
            return
        down += 1
        finished = next_top - top
        del tiles, logits, one  # freed while others work with the rows
        # A copy of the finished rows alone, so that the band itself can move on.
        yield band[:, :, :finished] / (down[:finished, None] * across)  # (B, C, r, W)
        _scroll(band, finished, dim=2)
        _scroll(down, finished, dim=0)


def _scroll(band: Tensor, rows: int, dim: int) -> None:
    """Move the band up by ``rows`` in place, zeros entering below."""
    size = band.shape[dim]
    for start in range(0, size - rows, rows):  # pieces, because overlapping copies are undefined
        piece = min(rows, size - rows - start)
        band.narrow(dim, start, piece).copy_(band.narrow(dim, start + rows, piece))
    band.narrow(dim, max(size - rows, 0), min(rows, size)).zero_()
