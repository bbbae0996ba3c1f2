"""Criss-cross attention: each position attends to its row and its column, twice.

Source: Z. Huang, X. Wang, Y. Wei, L. Huang, H. Shi, W. Liu, T. S. Huang, "CCNet: Criss-Cross
Attention for Semantic Segmentation", arXiv 1811.11721, section 3.2 (affinity and aggregation) and
3.3 (recurrence). C/8 query channels and the gate that starts at zero are facts of its published
code.

Legend: B batch, C channels, H x W grid, N = H*W positions, d query/key channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer, tokens_to_map

__all__ = ["CrissCrossAttention"]


class CrissCrossAttention(MapLayer):
    """``y = x + gate * sum_over_path(softmax(q . k) v)``, R times with the same weights.

    The path of a position is its row and its column, H + W - 1 positions: itself counts once.
    Scores are not scaled. N (H + W) weights are stored; a fused kernel (``flex_attention`` on rows
    and on columns, merged by their log-sum-exp) would store none.

    Args:
        channels: C.
        qk_channels: channels of queries and keys; C/8 by default. Values have C.
        recurrence: R; after 2 rounds every position has seen every other.
        zero_init: start as the identity (gate at zero).

    Raises:
        InputError: for a size below 1, or at run time an input of another shape.

    >>> layer = CrissCrossAttention(16)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        qk_channels: int | None = None,
        recurrence: int = 2,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inner = max(channels // 8, 1) if qk_channels is None else qk_channels
        super().__init__(channels, qk_channels=inner, recurrence=recurrence)
        self.qk_channels, self.recurrence = inner, recurrence
        # Channels innermost: rows and columns are then both matrices as they lie in memory.
        self.qkv = nn.Linear(channels, 2 * inner + channels, device=device, dtype=dtype)
        start = 0.0 if zero_init else 1.0
        self.gate = nn.Parameter(torch.full((1,), start, device=device, dtype=dtype))

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
        column.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))  # the row has the position itself
        scores = torch.cat([column.transpose(1, 2), row], -1)  # (B, H, W, H + W)
        column, row = scores.softmax(-1).split([height, width], -1)
        from_column = column.transpose(1, 2) @ v.transpose(1, 2)  # (B, W, H, C)
        attended = row @ v + from_column.transpose(1, 2)  # (B, H, W, C)
        return tokens_to_map(attended.flatten(1, 2), height, width)  # (B, C, H, W)

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs of all products, that of a position with itself in both directions."""
        c, d = self.channels, self.qk_channels
        per_position = c * (2 * d + c) + (height + width) * (d + c)
        return self.recurrence * 2 * batch * height * width * per_position

    def extra_repr(self) -> str:
        return f"{self.channels}, recurrence={self.recurrence}"
