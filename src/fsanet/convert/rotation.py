"""Rotary position embedding (RoPE) of queries and keys, at the positions of a map and between them.

Source: RoFormer (arXiv 2104.09864), section 3.2; over two axes: EVA-02 (arXiv 2303.11331) and
DINOv3 (arXiv 2508.10104).

Legend: H x W grid, N = H*W positions, mh x mw points, M = mh*mw, d channels of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rotation"]


class Rotation(NamedTuple):
    """Pairs of channels turned by an angle that is linear in the position.

    Attributes:
        cos, sin: of the angle of each channel, ``(..., N, d)``.
        half: whether the pairs are (i, i + d/2), as in DINOv3, or (2i, 2i + 1).
    """

    cos: Tensor
    sin: Tensor
    half: bool

    def turn(self, x: Tensor) -> Tensor:
        """Turn queries or keys ``(..., N, d)``."""
        if self.half:
            first, second = x.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return (x * self.cos + turned * self.sin).to(x.dtype)

    def at(self, size: tuple[int, int], points: tuple[int, int]) -> Rotation:
        """The rotation at evenly spaced points of the map, see ``token_spectrum.patch_basis``.

        The angle is continued between neighbours by the shorter way round. That is exact if it
        changes by less than half a turn from one position to the next.

        Args:
            size: H and W.
            points: (mh, mw), at most H and W.
        """
        dtype = torch.promote_types(self.cos.dtype, torch.float32)
        angle = torch.atan2(self.sin.to(dtype), self.cos.to(dtype)).unflatten(-2, size)
        for axis, count in zip((-3, -2), points, strict=True):
            angle = _interpolate(angle, axis, count)  # (..., mh, W, d), then (..., mh, mw, d)
        angle = angle.flatten(-3, -2)  # (..., M, d)
        return Rotation(angle.cos(), angle.sin(), self.half)


def _interpolate(angle: Tensor, axis: int, count: int) -> Tensor:
    """Angles at ``count`` evenly spaced points of an axis."""
    size = angle.shape[axis]
    step = torch.remainder(angle.diff(dim=axis) + math.pi, 2 * math.pi) - math.pi
    start = angle.narrow(axis, 0, 1)
    angle = start + torch.cat([torch.zeros_like(start), step], axis).cumsum(axis)
    where = (torch.arange(count, device=angle.device, dtype=angle.dtype) + 0.5) * (size / count)
    where = where - 0.5  # 0 to size - 1, as count <= size
    below = where.long()
    above = (below + 1).clamp(max=size - 1)
    part = (where - below).reshape(-1, *[1] * (-axis - 1))
    return torch.lerp(angle.index_select(axis, below), angle.index_select(axis, above), part)
