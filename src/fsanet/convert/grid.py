"""Softmax attention of a map over a coarse grid of keys, evaluated from coefficients.

Legend: B batch, C channels, H x W grid, N = H*W, M points of the coarse grid, d query/key
channels, e value channels, K coefficients.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fsanet.attention import FrequencySelfAttention
from fsanet.attention.dct import Band, Basis, full_precision
from fsanet.attention.kernels import analyse
from fsanet.attention.similarity import attend
from fsanet.convert.spectra import TokenSpectrum, points_of
from fsanet.convert.token_attention import check_route, compute_dtype

__all__ = ["GridSelfAttention"]


class GridSelfAttention(FrequencySelfAttention):
    """:class:`FrequencySelfAttention` with softmax over m x m keys: O(N m^2).

    The low-passed keys and values are known between positions, too: they are evaluated at m x m
    evenly spread points (the m-point DCT of their coefficients), and stand for the keys at all N
    positions. From m = max(H, W) on this is the layer itself, and for smaller m a midpoint rule
    for its sums over keys. Queries stay at all positions.

    Args:
        channels: C.
        grid: m, or (mh, mw); best not below k.
        **options: of :class:`FrequencySelfAttention`; the similarity is softmax.

    Raises:
        InputError: for an option that makes no sense.

    >>> import torch
    >>> layer = GridSelfAttention(16, grid=6, k=4)
    >>> layer(torch.randn(1, 16, 20, 31)).shape
    torch.Size([1, 16, 20, 31])
    """

    def __init__(self, channels: int, *, grid: int | tuple[int, int] = 16, **options: Any) -> None:
        check_route("grid", grid, options.setdefault("similarity", "softmax"))
        super().__init__(channels, **options)
        self.grid = grid

    def add(self, residual: Tensor, coefficients: Tensor, basis: Basis) -> Tensor:
        """Attention over given coefficients, added to a map; see the base class."""
        rows, columns, size = basis.rows, basis.columns, basis.grid
        points = points_of(self.grid, *size)
        band = self.band.clip(*size)
        y, dtype = residual, compute_dtype(residual)
        for round_ in range(self.recurrence):
            with full_precision(residual):
                s = TokenSpectrum(coefficients.permute(0, 2, 3, 1), rows, columns, Band(*band))
                q = s.tokens(self.query.weight, self.query.bias)  # (B, N, d)
                k = s.at_points(self.key.weight, self.key.bias, points)  # (B, M, d)
                v = s.at_points(self.value.weight, self.value.bias, points)  # (B, M, e)
                q, k, v = (t.mT.to(dtype) for t in (q, k, v))
                out = attend(q, k, v, "softmax", self.scale)  # (B, e, N)
                out = self.finish_map(out.unflatten(2, size).to(self.query.weight.dtype))
                y = y + out.to(y.dtype)
                if round_ + 1 < self.recurrence:
                    coefficients = coefficients + analyse(out.to(rows.dtype), rows, columns)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid={self.grid}"
