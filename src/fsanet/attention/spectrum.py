"""Coefficients of a band, and what can be done on the grid of positions without leaving the band.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
K' = K, or K + 1 where the constant is one more coefficient, P (N, K') the (never written) basis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Grid", "Spectrum"]


class Spectrum(NamedTuple):
    """Coefficients of a map with all that is needed to work on them and to leave them.

    ``tokens`` is (B, K, C): a frequency is a token, so that 1x1 maps are plain linear layers;
    ``rows`` (kh, H) and ``columns`` (kw, W) are the bases; ``has_dc``: whether frequency (0, 0) is
    among them, then as the first.
    """

    tokens: Tensor
    rows: Tensor
    columns: Tensor
    has_dc: bool

    @classmethod
    def of(cls, coefficients: Tensor, rows: Tensor, columns: Tensor, has_dc: bool) -> Spectrum:
        """From coefficients ``(B, C, kh, kw)``."""
        return cls(coefficients.flatten(2).mT.contiguous(), rows, columns, has_dc)

    @property
    def positions(self) -> int:
        return self.rows.shape[1] * self.columns.shape[1]

    @property
    def size(self) -> int:
        """K."""
        return self.rows.shape[0] * self.columns.shape[0]

    def plane(self, tokens: Tensor) -> Tensor:
        """(B, K, c) as (B, c, kh, kw)."""
        return tokens.mT.unflatten(2, (self.rows.shape[0], self.columns.shape[0]))


class Grid(NamedTuple):
    """Sums over all positions of products of basis functions, at the cost of a few thin products.

    With P the basis and P_p its row at position p, ``P_p^T P_p`` is a Kronecker product of one
    factor a row of the grid and one a column. So nothing of N x K is ever written: a map of
    quadratic forms, or a weighted Gram matrix, is two products with (kh^2, H) and (kw^2, W).

    ``extended``: the constant ``1 / sqrt(N)`` counts as one more basis function, the last.
    """

    rows: Tensor
    columns: Tensor
    extended: bool

    @property
    def positions(self) -> int:
        return self.rows.shape[1] * self.columns.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rows.shape[1], self.columns.shape[1]

    def synthesise(self, c: Tensor) -> Tensor:
        """``P c``: coefficients (B, K') to a map (B, H, W)."""
        plane = self._band(c).unflatten(-1, (self.rows.shape[0], self.columns.shape[0]))
        y = self.rows.T @ plane @ self.columns  # (B, H, W)
        return y + (c[..., -1] / self._root)[..., None, None] if self.extended else y

    def analyse(self, g: Tensor) -> Tensor:
        """``P^T g``: a map (B, H, W) to coefficients (B, K')."""
        c = (self.rows @ g @ self.columns.T).flatten(-2)  # (B, K)
        if not self.extended:
            return c
        return torch.cat([c, (g.sum((-2, -1)) / self._root)[..., None]], -1)

    def quadratic(self, gram: Tensor) -> Tensor:
        """``P_p gram P_p^T`` at every p: symmetric (B, K', K') to a map (B, H, W)."""
        kh, kw = self.rows.shape[0], self.columns.shape[0]
        band = self._band(gram[..., :-1, :] if self.extended else gram)  # (B, K, K)
        pairs = band.unflatten(-1, (kh, kw)).unflatten(-3, (kh, kw))  # (B, kh, kw, kh, kw)
        pairs = pairs.movedim(-2, -3).flatten(-4, -3).flatten(-2)  # (B, kh kh, kw kw)
        y = _pairs(self.rows).T @ pairs @ _pairs(self.columns)  # (B, H, W)
        if not self.extended:
            return y
        last = gram[..., -1, :]  # (B, K'); all but its end is met twice in a symmetric matrix
        return y + self.synthesise((last + pad(last[..., :-1], (0, 1))) / self._root)

    def weighted_gram(self, g: Tensor) -> Tensor:
        """``P^T diag(g) P``: a map (B, H, W) to (B, K', K')."""
        kh, kw = self.rows.shape[0], self.columns.shape[0]
        pairs = _pairs(self.rows) @ g @ _pairs(self.columns).T  # (B, kh kh, kw kw)
        band = pairs.unflatten(-1, (kw, kw)).unflatten(-3, (kh, kh))  # (B, kh, kh, kw, kw)
        band = band.movedim(-3, -2).flatten(-2).flatten(-3, -2)  # (B, K, K)
        if not self.extended:
            return band
        edge = self.analyse(g) / self._root  # (B, K + 1)
        wide = torch.cat([pad(band, (0, 0, 0, 1)), edge[..., None]], -1)
        return wide + pad(edge[..., None, :-1], (0, 1, band.shape[-1], 0))

    @property
    def _root(self) -> float:
        return self.positions**0.5

    def _band(self, c: Tensor) -> Tensor:
        return c[..., :-1] if self.extended else c


def _pairs(basis: Tensor) -> Tensor:
    """All products of two basis functions: (k, n) to (k k, n)."""
    return (basis[:, None] * basis).flatten(0, 1)
