"""Asymmetric non-local blocks: keys and values from a pyramid of pooled positions.

Source: Z. Zhu, M. Xu, S. Bai, T. Huang, X. Bai, "Asymmetric Non-local Neural Networks for Semantic
Segmentation", arXiv 1908.07678, section 3 (APNB).

Legend: B batch, C channels, H x W grid, N = H*W positions, S pooled positions, d query/key
channels, e value channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, linear

from fsanet.bench.layers.map_layer import MapLayer
from fsanet.errors import InputError


class PyramidNonLocal(MapLayer):
    """``y = x + Wo (v softmax(k^T q))`` with S = 110 pooled keys and values.

    Pooling and 1x1 projections commute, so the map is pooled first and only S positions are
    projected. Scores are scaled by ``1 / sqrt(d)``, as in the published code. The paper
    concatenates the result with the input; here it is added.

    Args:
        channels: C.
        inner_channels: channels of queries, keys and values; C/2 by default.
        pool_sizes: the pyramid; each n adds n x n positions, by average pooling.
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        pool_sizes: Sequence[int] = (1, 3, 6, 8),
    ) -> None:
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        super().__init__(channels, inner_channels=inner)
        if not pool_sizes or min(pool_sizes) < 1:
            raise InputError(
                f"pool_sizes={pool_sizes!r}: expected one or more sizes, each of them at least 1"
            )
        self.pool_sizes = tuple(pool_sizes)
        self.query = nn.Conv2d(channels, inner, 1)  # keys share it
        self.value = nn.Linear(channels, inner)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        q = self.query(x).flatten(2)  # (B, d, N)
        pooled = [adaptive_avg_pool2d(x, n).flatten(2) for n in self.pool_sizes]
        tokens = torch.cat(pooled, 2).mT  # (B, S, C)
        k = linear(tokens, self.query.weight.flatten(1), self.query.bias)  # (B, S, d)
        v = self.value(tokens)  # (B, S, e)
        weights = ((k * k.shape[-1] ** -0.5) @ q).softmax(1)  # (B, S, N)
        return x + self.out((v.mT @ weights).unflatten(2, x.shape[-2:]))
