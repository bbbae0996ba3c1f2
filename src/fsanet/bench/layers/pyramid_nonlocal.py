"""Asymmetric non-local blocks: keys and values from a pyramid of pooled positions.

Source: Z. Zhu, M. Xu, S. Bai, T. Huang, X. Bai, "Asymmetric Non-local Neural Networks for Semantic
Segmentation", arXiv 1908.07678, section 3 (APNB, and AFNB for two maps).

Legend: B batch, C channels, H x W grid, N = H*W positions, S pooled positions, d query/key
channels, e value channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

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
        context_channels: channels of a second map (AFNB: the lower stage) that keys and values
            come from, with a key projection of their own. By default they come from x, and keys
            share the projection of the queries (APNB).
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        pool_sizes: Sequence[int] = (1, 3, 6, 8),
        context_channels: int | None = None,
    ) -> None:
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        source = channels if context_channels is None else context_channels
        super().__init__(channels, inner_channels=inner, context_channels=source)
        if not pool_sizes or min(pool_sizes) < 1:
            raise InputError(
                f"pool_sizes={pool_sizes!r}: expected one or more sizes, each of them at least 1"
            )
        self.pool_sizes, self.context_channels = tuple(pool_sizes), context_channels
        self.query = nn.Conv2d(channels, inner, 1)
        self.key: nn.Linear | None = None
        if context_channels is not None:
            # No bias: it would shift all scores of a query alike, which softmax cancels.
            self.key = nn.Linear(context_channels, inner, bias=False)
        self.value = nn.Linear(source, inner)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` to the same shape; ``context`` is the second map, if there is one."""
        self.check_input(x)
        source = self._source(x, context)
        q = self.query(x).flatten(2)  # (B, d, N)
        pooled = [adaptive_avg_pool2d(source, n).flatten(2) for n in self.pool_sizes]
        tokens = torch.cat(pooled, 2).mT  # (B, S, source channels)
        if self.key is None:  # shared with the query
            k = nn.functional.linear(tokens, self.query.weight.flatten(1), self.query.bias)
        else:
            k = self.key(tokens)  # (B, S, d)
        v = self.value(tokens)  # (B, S, e)
        weights = ((k * k.shape[-1] ** -0.5) @ q).softmax(1)  # (B, S, N)
        return x + self.out((v.mT @ weights).unflatten(2, x.shape[-2:]))

    def _source(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.context_channels is None:
            if context is not None:
                raise InputError("got a context map: build the layer with context_channels")
            return x
        if context is None or context.ndim != 4 or context.shape[1] != self.context_channels:
            got = None if context is None else tuple(context.shape)
            raise InputError(
                f"expected a context map (B, {self.context_channels}, h, w), got {got}"
            )
        return context
