"""Softmax attention over a map with a coarse grid of keys, evaluated from coefficients.

Legend: B batch, C channels, H x W grid, N = H*W, M points of the coarse grid, d query/key
channels, e value channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fsanet.attention import FrequencySelfAttention
from fsanet.attention.dct import Basis, autocast_dtype, full_precision
from fsanet.attention.kernels import analyse
from fsanet.attention.similarity import attend
from fsanet.convert.token_attention import check_route
from fsanet.convert.token_spectrum import TokenSpectrum, grid_points

__all__ = ["GridSelfAttention"]


class GridSelfAttention(FrequencySelfAttention):
    """:class:`FrequencySelfAttention` with softmax over m x m keys: O(N m^2) in place of O(N^2).

    Low-passed keys and values are known between the positions of the map, too. They are evaluated
    at m x m evenly spaced points (the m-point DCT of their coefficients), which stand for the keys
    at all N positions; queries stay at all N. With m >= max(H, W) the output is the one of the
    layer itself; a smaller m is a midpoint rule for its sums over keys.

    Args:
        channels: C.
        grid: m, or (mh, mw); preferably at least k.
        **options: those of :class:`FrequencySelfAttention`; the similarity is softmax.

    Raises:
        InputError: for an invalid option.

    >>> import torch
    >>> layer = GridSelfAttention(16, grid=6, k=4)
    >>> layer(torch.randn(1, 16, 20, 31)).shape
    torch.Size([1, 16, 20, 31])
    """

    def __init__(self, channels: int, *, grid: int | tuple[int, int] = 16, **options: Any) -> None:
        check_route("grid", grid, options.setdefault("similarity", "softmax"))
        super().__init__(channels, **options)
        self.grid = grid

    def is_regular(self, height: int, width: int) -> bool:
        """As in the base class, where the keys are at all positions."""
        points = grid_points(self.grid, height, width)
        return points == (height, width) and super().is_regular(height, width)

    def add(
        self, residual: Tensor, coefficients: Tensor, basis: Basis, *, inplace: bool = False
    ) -> Tensor:
        """Add the attention over the given coefficients to a map; see the base class."""
        rows, columns, (height, width) = basis.rows, basis.columns, basis.grid
        points = grid_points(self.grid, height, width)
        band = self.band.clip(height, width)
        y, dtype = residual, autocast_dtype(residual)
        for round_ in range(self.recurrence):
            with full_precision(residual):
                s = TokenSpectrum(coefficients.permute(0, 2, 3, 1), rows, columns, band)
                q = s.project(self.query.weight, self.query.bias)  # (B, N, d)
                k = s.project(self.key.weight, self.key.bias, points)  # (B, M, d)
                v = s.project(self.value.weight, self.value.bias, points)  # (B, M, e)
                q, k, v = (t.mT.to(dtype) for t in (q, k, v))
                out = attend(q, k, v, "softmax", self.scale)  # (B, e, N)
                out = out.unflatten(2, (height, width)).to(self.query.weight.dtype)
                out = self.finish_map(out)  # (B, C, H, W)
                y = y.add_(out.to(y.dtype)) if inplace else y + out.to(y.dtype)
                if round_ + 1 < self.recurrence:
                    coefficients = coefficients + analyse(out.to(rows.dtype), rows, columns)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid={self.grid}"
