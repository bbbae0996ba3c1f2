"""Criss-cross attention: each position attends to its row and its column, twice.

Source: Z. Huang, X. Wang, Y. Wei, L. Huang, H. Shi, W. Liu, T. S. Huang, "CCNet: Criss-Cross
Attention for Semantic Segmentation", arXiv 1811.11721, section 3.2 (affinity and aggregation) and
3.3 (recurrence). C/8 query channels and a gate that starts at zero are taken from its published
code.

Legend: B batch, C channels, H x W grid, N = H*W positions, d query/key channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer, tokens_to_map


class CrissCrossAttention(MapLayer):
    """``y = x + gate * sum_over_path(softmax(q . k) v)``, R times with the same weights.

    The path of a position is its row and its column, H + W - 1 positions: itself counts once.
    Scores are not scaled. The N (H + W) weights are stored; a fused kernel (``flex_attention`` on
    rows and on columns, merged by log-sum-exp) would avoid that.

    Args:
        channels: C.
        qk_channels: channels of queries and keys; C/8 by default. Values have C channels.
        recurrence: R; after two rounds every position has seen every other one.
        zero_init: whether to start as the identity (gate at zero).
    """

    def __init__(
        self,
        channels: int,
        *,
        qk_channels: int | None = None,
        recurrence: int = 2,
        zero_init: bool = True,
    ) -> None:
        inner = max(channels // 8, 1) if qk_channels is None else qk_channels
        super().__init__(channels, qk_channels=inner, recurrence=recurrence)
        self.qk_channels, self.recurrence = inner, recurrence
        # With channels innermost, rows and columns are both matrices in memory.
        self.qkv = nn.Linear(channels, 2 * inner + channels)
        start = 0.0 if zero_init else 1.0
        self.gate = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        for _ in range(self.recurrence):
            x = torch.addcmul(x, self.gate, self._attend(x))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.qkv(x.flatten(2).mT).unflatten(1, (height, width))  # (B, H, W, 2d + C)
        q, k, v = tokens.split([self.qk_channels, self.qk_channels, self.channels], -1)
        column = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (B, W, H query, H key)
        row = q @ k.mT  # (B, H, W query, W key)
        column.diagonal(dim1=-2, dim2=-1).fill_(
            float("-inf")
        )  # the row contains the position itself
        scores = torch.cat([column.transpose(1, 2), row], -1)  # (B, H, W, H + W)
        column, row = scores.softmax(-1).split([height, width], -1)
        from_column = column.transpose(1, 2) @ v.transpose(1, 2)  # (B, W, H, C)
        attended = row @ v + from_column.transpose(1, 2)  # (B, H, W, C)
        return tokens_to_map(attended.flatten(1, 2), height, width)  # (B, C, H, W)
