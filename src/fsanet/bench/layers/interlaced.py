"""Interlaced sparse self-attention: long-range groups first, then short-range ones.

Source: L. Huang, Y. Yuan, J. Guo, C. Zhang, X. Chen, J. Wang, "Interlaced Sparse Self-Attention
for Semantic Segmentation", arXiv 1907.12273, section 3.

Legend: B batch, C channels, H x W grid, P rows and columns of a block, Q blocks along an axis,
G groups, T positions of a group, d inner channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from fsanet.bench.layers.map_layer import MapLayer

__all__ = ["InterlacedAttention"]


class InterlacedAttention(MapLayer):
    """``y = x + short(long(x))``, two softmax attentions over groups of positions.

    The grid is cut into blocks of P x P. A long-range group holds the positions at the same place
    of every block, a short-range group those of one block; after both, every position has seen
    every other. The paper concatenates the result with the input; here it is added.

    Sizes that P does not divide are padded at the bottom and at the right; padded positions are
    never attended to. Both attentions run through ``scaled_dot_product_attention``.

    Args:
        channels: C.
        inner_channels: channels of queries, keys and values; C/2 by default.
        block_size: P, cut to the map's size; 8 as in the paper.

    Raises:
        InputError: for a size below 1, or at run time an input of another shape.

    >>> layer = InterlacedAttention(16, block_size=3)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        block_size: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        super().__init__(channels, inner_channels=inner, block_size=block_size)
        self.inner_channels, self.block_size = inner, block_size
        self.long = _GroupAttention(channels, inner, device=device, dtype=dtype)
        self.short = _GroupAttention(channels, inner, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        height, width = x.shape[-2:]
        ph, pw, qh, qw = self._partition(height, width)
        bottom, right = qh * ph - height, qw * pw - width
        padded = pad(x, (0, right, 0, bottom)) if bottom or right else x
        grid = padded.unflatten(3, (qw, pw)).unflatten(2, (qh, ph))  # (B, C, Qh, Ph, Qw, Pw)
        tokens = grid.permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(1, 2)  # (B, PhPw, QhQw, C)
        long_mask = short_mask = None
        if bottom or right:
            real = x.new_zeros(qh * ph, qw * pw, dtype=torch.bool)
            real[:height, :width] = True
            real = real.unflatten(1, (qw, pw)).unflatten(0, (qh, ph))  # (Qh, Ph, Qw, Pw)
            long_mask = real.permute(1, 3, 0, 2).reshape(1, ph * pw, 1, qh * qw)
            short_mask = real.permute(0, 2, 1, 3).reshape(1, qh * qw, 1, ph * pw)
        tokens = self.long(tokens, long_mask).transpose(1, 2)  # (B, QhQw, PhPw, C)
        tokens = self.short(tokens, short_mask)
        grid = tokens.unflatten(2, (ph, pw)).unflatten(1, (qh, qw))  # (B, Qh, Qw, Ph, Pw, C)
        out = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, QhPh, QwPw)
        return x + out[:, :, :height, :width]

    def _partition(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Ph, Pw, Qh, Qw. P is never above the map's size, so no group is all padding."""
        ph, pw = min(self.block_size, height), min(self.block_size, width)
        return ph, pw, -(-height // ph), -(-width // pw)

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs of all products, those with padded positions included."""
        ph, pw, qh, qw = self._partition(height, width)
        c, d = self.channels, self.inner_channels
        projections = 2 * 4 * c * d
        scores_and_values = 2 * d * (qh * qw + ph * pw)
        return 2 * batch * ph * pw * qh * qw * (projections + scores_and_values)

    def extra_repr(self) -> str:
        return f"{self.channels}, block_size={self.block_size}"


class _GroupAttention(nn.Module):
    """Softmax attention within each group: tokens ``(B, G, T, C)`` to the same shape."""

    def __init__(
        self,
        channels: int,
        inner: int,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * inner, device=device, dtype=dtype)
        self.out = nn.Linear(inner, channels, device=device, dtype=dtype)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(tokens).chunk(3, -1)  # (B, G, T, d)
        return self.out(scaled_dot_product_attention(q, k, v, attn_mask=mask))
