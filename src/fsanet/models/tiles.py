"""Class scores of an image of any size: sliding windows, several scales, mirror images.

An image is covered by a grid of windows whose logits are averaged where they overlap. Sums are kept
only for the rows that windows further down still touch: pixels that no later window touches are
finished, handed on and forgotten. So the logits of a large image never exist as a whole.

Shapes: B images, C classes, (H, W) image, (H', W') the same scaled, (h, w) window, r rows, c
columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Block",
    "ResizedRows",
    "class_scores",
    "resized",
    "sliding_blocks",
    "sliding_rows",
    "window_starts",
]

# uint8 (b, 3, h', w') and the size (h, w) to pad it to -> float32 logits (b, C, any, any) of it
Forward = Callable[[Tensor, tuple[int, int]], Tensor]

_LARGEST_PADDED = 2048  # pixels; an image is not padded to windows that are higher or wider


class Block(NamedTuple):
    """Finished scores, float32 (b, C, r, c), of pixels ``[images, rows, columns]`` of (B, H, W)."""

    images: slice
    rows: slice
    columns: slice
    scores: Tensor


def class_scores(
    images: Tensor,
    forward: Forward,
    *,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    band: int,
    align_corners: bool,
    scales: Sequence[float],
    flip: bool,
    batch_size: int,
    probabilities: bool,
) -> Iterator[Block]:
    """Yield the score of each class at each pixel, averaged over all views.

    Args:
        images: uint8 (B, 3, H, W).
        forward: the model; see `Forward`.
        window, stride: pixels, (vertical, horizontal), or None for the whole image at once.
        band: most rows of a block, except for the windows of a single view at the size of the
            images.
        align_corners: how logits are upsampled to the size of what the model was fed.
        scales: factors the images are resized by.
        flip: add each scale mirrored.
        batch_size: windows per forward pass.
        probabilities: yield probabilities even where logits would do.

    Yields:
        Each pixel once: probabilities averaged over the views, or the logits of the only view.
    """
    looks = [
        (scale, mirror) for scale in scales for mirror in ((False, True) if flip else (False,))
    ]
    softmax = probabilities or len(looks) > 1
    size = (images.shape[2], images.shape[3])
    every = slice(None)

    options: dict[str, Any] = {
        "window": window,
        "stride": stride,
        "batch_size": batch_size,
        "align_corners": align_corners,
    }
    if window is not None and looks == [(1, False)]:
        for block in sliding_blocks(images, forward, **options):
            yield block._replace(scores=_average([block.scores], softmax))
            del block  # freed before the next is made
        return

    def view(scale: float, mirror: bool) -> ResizedRows:
        seen = resized(images, scale)  # (B, 3, H', W')
        scaled = (seen.shape[2], seen.shape[3])
        if window is not None:
            return ResizedRows(sliding_rows(seen, forward, flip=mirror, **options), scaled, size)
        logits = forward(seen.flip(3), scaled).flip(3) if mirror else forward(seen, scaled)
        upsampled = _upsampled(logits, scaled, align_corners)
        if scaled == size:
            return upsampled
        return ResizedRows(upsampled.bands(max(1, round(band * scale))), scaled, size)

    views: Iterable[ResizedRows] = (view(*look) for look in looks)  # one after the other
    bands = list(_bands(size[0], size[0] if stride is None else stride[0], band))
    if len(bands) > 1:
        views = list(views)  # all advance together
    for rows in bands:
        pieces = (one.take(rows.start, rows.stop) for one in views)
        yield Block(every, rows, every, _average(pieces, softmax))


def _bands(height: int, stride: int, band: int) -> Iterator[slice]:
    """Rows 0..height, ``band`` at a time, and none across a multiple of ``stride``."""
    for top in range(0, height, stride):
        end = min(top + stride, height)
        for start in range(top, end, band):
            yield slice(start, min(start + band, end))


def _average(pieces: Iterable[Tensor], softmax: bool) -> Tensor:
    """Mean of the probabilities (B, C, r, W) of all views, or the logits of the only one."""
    total, count = torch.empty(0), 0
    for piece in pieces:
        if not softmax:
            return piece
        piece = piece.softmax(1)
        total = total.add_(piece) if count else piece
        count += 1
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


def sliding_blocks(
    images: Tensor,
    forward: Forward,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
    align_corners: bool = False,
    flip: bool = False,
) -> Iterator[Block]:
    """Yield the averaged logits of ``images``, a block for each window.

    Args:
        images: uint8 (B, 3, H, W).
        forward: the model for up to ``batch_size`` tiles at once. An image smaller than the window
            gives smaller tiles, which ``forward`` pads at the bottom and the right.
        window, stride: pixels, (vertical, horizontal); stride <= window.
        align_corners: how logits are upsampled to the size of the windows.
        flip: feed the images mirrored left to right, and mirror their logits back.

    Memory besides the model's own: two windows, and sums of the rows that overlap with the next
    row of windows, (B, C, h - vertical stride, W) in most cases.
    """
    count, _, height, width = images.shape
    window = tuple(  # type: ignore[assignment]
        side if side <= _LARGEST_PADDED else min(side, length)
        for side, length in zip(window, (height, width), strict=True)
    )
    tile = min(window[0], height), min(window[1], width)
    tops = window_starts(height, window[0], stride[0])
    lefts = window_starts(width, window[1], stride[1])
    down, across = _windows_over(height, tops, tile[0]), _windows_over(width, lefts, tile[1])
    next_tops, next_lefts = [*tops[1:], height], [*lefts[1:], width]
    # Rows shared with the windows further down; the last pair of windows may overlap the most.
    shared = max((top + tile[0] - below for top, below in pairwise(tops)), default=0)
    places = [(image, column) for image in range(count) for column in range(len(lefts))]
    carried = sums = torch.empty(0)  # sums of shared rows, (B, C, shared, W), and of one window
    for row, (top, next_top) in enumerate(zip(tops, next_tops, strict=True)):
        strip = images[:, :, top : top + tile[0]]  # (B, 3, h', W)
        strip = strip.flip(3) if flip else strip
        above = tops[row - 1] + tile[0] - top if row else 0  # rows shared with windows above
        finished = next_top - top
        for first in range(0, len(places), batch_size):
            chosen = places[first : first + batch_size]
            tiles = [strip[i, :, :, lefts[x] : lefts[x] + tile[1]] for i, x in chosen]
            logits = forward(torch.stack(tiles), window)
            logits = _upsampled(logits, window, align_corners).take(0, window[0])
            logits = logits[:, :, : tile[0], : tile[1]]
            if carried.ndim != 4:
                carried = logits.new_zeros(count, logits.shape[1], shared, width)
                down, across = down.to(carried.device), across.to(carried.device)
            blocks = []
            for (image, column), one in zip(chosen, logits, strict=True):  # one (C, h', w')
                left, end = lefts[column], next_lefts[column]
                start = left + sums.shape[2] if column else left  # columns not touched so far
                fresh = torch.zeros_like(one[:, :, start - left :])
                fresh[:, :above] = carried[image, :, :above, start : left + tile[1]]
                sums = torch.cat([sums, fresh], 2) if column else fresh
                sums += one  # (C, h', w')
                done = sums[:, :, : end - left]
                mean = done[:, :finished] / (down[top:next_top, None] * across[left:end])
                carried[image, :, : tile[0] - finished, left:end] = done[:, finished:]
                sums = sums[:, :, end - left :].clone()  # (C, h', c) of columns still touched
                columns = slice(left, end)
                if flip:
                    mean, columns = mean.flip(2), slice(width - end, width - left)
                rows = slice(top, next_top)
                blocks.append(Block(slice(image, image + 1), rows, columns, mean[None]))
            del tiles, logits, one, fresh, done, mean  # freed while others work with the blocks
            while blocks:
                yield blocks.pop(0)


def _windows_over(length: int, starts: Sequence[int], size: int) -> Tensor:
    """Number of windows over each position of an axis, float32 (length,)."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + size] += 1
    return count


def sliding_rows(images: Tensor, forward: Forward, **options: Any) -> Iterator[Tensor]:
    """Yield the blocks of `sliding_blocks` as rows, float32 (B, C, r, W), from top to bottom."""
    rows: list[Tensor] = []  # one at most; a list, so that nothing holds on to what was yielded
    missing = 0  # pixels of a row of all images
    for block in sliding_blocks(images, forward, **options):
        _, classes, high, wide = block.scores.shape
        if not rows:
            rows = [block.scores.new_empty(len(images), classes, high, images.shape[3])]
            missing = len(images) * images.shape[3]
        rows[0][block.images, :, :, block.columns] = block.scores
        missing -= wide
        del block
        if not missing:
            yield rows.pop()


class ResizedRows:
    """Rows of (B, C, H', W') arriving from top to bottom, read as rows of its resized version.

    The result is that of ``F.interpolate(..., size, mode="bilinear", align_corners=...)`` on the
    whole, which exists only if it is taken at once.
    """

    def __init__(
        self,
        rows: Iterator[Tensor],
        source: tuple[int, int],
        size: tuple[int, int],
        align_corners: bool = False,
    ) -> None:
        """Take ``rows`` of a map of ``source`` size."""
        self._rows = rows
        self._source = source
        self._size = size
        self._resize = partial(F.interpolate, mode="bilinear", align_corners=align_corners)
        self._align_corners = align_corners
        self._held: Tensor | None = None  # source rows from self._first on
        self._first = 0

    def take(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of the resized map, (B, C, stop - start, W); calls go downwards."""
        if self._source == self._size:
            return self._hold(start, stop)[:, :, : stop - start]
        height, longer = self._source[0], self._size[0]
        if (start, stop) == (0, longer):
            return self._resize(self._hold(0, height), self._size)
        centre = torch.arange(start, stop, dtype=torch.float64)
        if self._align_corners:
            centre = centre * ((height - 1) / max(1, longer - 1))
        else:
            centre = ((centre + 0.5) * (height / longer) - 0.5).clamp(0, height - 1)
        above = centre.floor().long()
        below = (above + 1).clamp(max=height - 1)
        held = self._hold(int(above[0]), int(below[-1]) + 1)
        weight = (centre - above).to(held.device, held.dtype)[:, None]  # (r, 1)
        first = int(above[0])
        above, below = (above - first).to(held.device), (below - first).to(held.device)
        mixed = torch.lerp(held[:, :, above], held[:, :, below], weight)  # (B, C, r, W')
        mixed = mixed.contiguous(memory_format=torch.channels_last)  # twice as fast on a CPU
        return self._resize(mixed, (stop - start, self._size[1]))  # (B, C, r, W)

    def bands(self, rows: int) -> Iterator[Tensor]:
        """All rows of the resized map, ``rows`` at a time, (B, C, r, W)."""
        for start in range(0, self._size[0], rows):
            yield self.take(start, min(start + rows, self._size[0]))

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
            pieces.append(rows)
        held = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
        self._held, self._first = held[:, :, first - kept :], first
        return self._held


def _upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool) -> ResizedRows:
    """The rows of logits (B, C, any, any) of a network fed with images of this size."""
    source = (logits.shape[2], logits.shape[3])
    return ResizedRows(iter([logits]), source, size, align_corners)


def resized(images: Tensor, scale: float) -> Tensor:
    """uint8 (B, 3, H, W) scaled by bilinear interpolation, with antialiasing when it shrinks."""
    if scale == 1:
        return images
    height, width = images.shape[-2:]
    size = (max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5)))
    if size == (1, 1):  # torch's uint8 kernel fails here
        return images.float().mean((2, 3), keepdim=True).round().to(torch.uint8)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
