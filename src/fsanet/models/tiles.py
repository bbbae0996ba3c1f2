"""Logits of an image of any size, row by row: sliding windows, several scales, mirror images.

An image is covered by a grid of windows whose logits are averaged where they overlap. Only a band
of sums as high as one window is kept: rows that no later window touches are finished, handed on
and forgotten. So the logits of a large image never exist as a whole.

Shapes: B images, C classes, (H, W) image, (H', W') the same scaled, (h, w) window, r rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ResizedRows", "class_scores", "resized", "sliding_rows", "window_starts"]

# uint8 (b, 3, h', w') and the size (h, w) to pad it to -> float32 logits (b, C, h, w)
Forward = Callable[[Tensor, tuple[int, int]], Tensor]


def class_scores(
    images: Tensor,
    forward: Forward,
    *,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    scales: Sequence[float],
    flip: bool,
    batch_size: int,
    probabilities: bool,
) -> Iterator[Tensor]:
    """Yield the score of each class at each pixel, averaged over all views, from top to bottom.

    Args:
        images: uint8 (B, 3, H, W).
        forward: the model; see `Forward`.
        window, stride: pixels, (vertical, horizontal), or None for the whole image at once.
        scales: factors the images are resized by.
        flip: add each scale mirrored.
        batch_size: windows per forward pass.
        probabilities: yield probabilities even where logits would do.

    Yields:
        float32 (B, C, r, W), the r adding up to H: probabilities averaged over the views, or the
        logits of the only view.
    """
    looks = [
        (scale, mirror) for scale in scales for mirror in ((False, True) if flip else (False,))
    ]
    softmax = probabilities or len(looks) > 1
    size = (images.shape[2], images.shape[3])

    def view(scale: float, mirror: bool) -> ResizedRows:
        seen = resized(images, scale)  # (B, 3, H', W')
        scaled = (seen.shape[2], seen.shape[3])
        if mirror:
            seen = seen.flip(3)  # along the width; ResizedRows turns the logits back
        if window is None or stride is None:
            rows: Iterator[Tensor] = (forward(tiles, scaled) for tiles in (seen,))
        else:
            rows = sliding_rows(seen, forward, window=window, stride=stride, batch_size=batch_size)
        return ResizedRows(rows, scaled, size, flip=mirror)

    if window is None or stride is None:
        # The model makes logits of the whole image anyway: one view of them after the other.
        yield _average((view(*look).take(0, size[0]) for look in looks), len(looks), softmax)
        return
    views = [view(*look) for look in looks]  # all advance together, a band of each exists
    for start in range(0, size[0], stride[0]):
        stop = min(start + stride[0], size[0])
        yield _average((one.take(start, stop) for one in views), len(views), softmax)


def _average(pieces: Iterator[Tensor], count: int, softmax: bool) -> Tensor:
    if not softmax:
        return next(pieces)
    total = next(pieces).softmax(1)
    for piece in pieces:
        total += piece.softmax(1)
    return total.div_(count)


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


class ResizedRows:
    """Rows of (B, C, H', W') arriving from top to bottom, read as rows of its resized version.

    The result is that of ``F.interpolate(..., size, mode="bilinear", align_corners=False)`` on
    the whole, which never exists.
    """

    def __init__(
        self, rows: Iterator[Tensor], source: tuple[int, int], size: tuple[int, int], *, flip: bool
    ) -> None:
        """Take ``rows`` of a map of ``source`` size; ``flip`` mirrors them along the width."""
        self._rows = rows
        self._source = source
        self._size = size
        self._flip = flip
        self._held: Tensor | None = None  # source rows from self._first on
        self._first = 0

    def take(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of the resized map, (B, C, stop - start, W); calls go downwards."""
        if self._source == self._size:
            return self._hold(start, stop)[:, :, : stop - start]
        height = self._source[0]
        centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (height / self._size[0])
        centre = (centre - 0.5).clamp(0, height - 1)
        above = centre.floor().long()
        below = (above + 1).clamp(max=height - 1)
        held = self._hold(int(above[0]), int(below[-1]) + 1)
        weight = (centre - above).to(held.device, held.dtype)[:, None]  # (r, 1)
        first = int(above[0])
        above, below = (above - first).to(held.device), (below - first).to(held.device)
        mixed = torch.lerp(held[:, :, above], held[:, :, below], weight)  # (B, C, r, W')
        size = (stop - start, self._size[1])
        return F.interpolate(mixed, size, mode="bilinear", align_corners=False)  # (B, C, r, W)

    def _hold(self, first: int, stop: int) -> Tensor:
        """Source rows from ``first`` to at least ``stop``; those before are forgotten."""
        end = self._first + (0 if self._held is None else self._held.shape[2])
        kept = min(first, end)  # a strong reduction may skip rows that are yet to come
        pieces = []
        if self._held is not None and kept < end:
            pieces.append(self._held[:, :, kept - self._first :])
        self._held = None  # freed before more is made
        while end < stop:
            rows = next(self._rows)
            end += rows.shape[2]
            pieces.append(rows.flip(3) if self._flip else rows)
        held = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
        self._held, self._first = held[:, :, first - kept :], first
        return self._held


def resized(images: Tensor, scale: float) -> Tensor:
    """uint8 (B, 3, H, W) scaled by bilinear interpolation, with antialiasing when it shrinks."""
    if scale == 1:
        return images
    height, width = images.shape[-2:]
    size = (max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5)))
    if size == (1, 1):  # torch's uint8 kernel fails here
        return images.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
