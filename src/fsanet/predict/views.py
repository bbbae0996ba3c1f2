"""Several looks at an image, each scaled or mirrored, averaged without holding any of them whole.

Shapes: B images, C classes, (H, W) an image, (H', W') the same scaled, r rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsanet.predict.tiles import Forward, sliding_rows


def scores(
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
    """Yield what the classes score at each pixel, from top to bottom.

    Args:
        images: uint8 (B, 3, H, W).
        forward: the model; see `fsanet.predict.tiles.Forward`.
        window, stride: pixels, (vertical, horizontal), or None for the whole image at once.
        scales: factors the images are resized by.
        flip: add each scale mirrored.
        batch_size: windows in one forward pass.
        probabilities: give probabilities also where logits would do.

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
