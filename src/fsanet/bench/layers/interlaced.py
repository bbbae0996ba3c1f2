"""Interlaced sparse self-attention: first within long-range, then within short-range groups.

Source: L. Huang, Y. Yuan, J. Guo, C. Zhang, X. Chen, J. Wang, "Interlaced Sparse Self-Attention
for Semantic Segmentation", arXiv 1907.12273, section 3.

Legend: B batch, C channels, H x W grid, P rows and columns of a block, Q blocks along an axis,
G groups, T positions of a group, d inner channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from fsanet.bench.layers.map_layer import MapLayer, project_to_map


class InterlacedAttention(MapLayer):
    """``y = x + short(long(x))``, two softmax attentions over groups of positions.

    The grid is divided into blocks of P x P positions. A long-range group consists of the positions
    at the same place in every block, a short-range group of those in one block; after both, every
    position has seen every other one. The paper concatenates the result with the input; here it is
    added.

    Maps whose size is not divisible by P are padded at the bottom and on the right; padded
    positions are never attended to. Both attentions use ``scaled_dot_product_attention``.

    Args:
        channels: C.
        inner_channels: channels of queries, keys and values; C/2 by default.
        block_size: P, at most the size of the map; 8 as in the paper.
    """

    def __init__(
        self, channels: int, *, inner_channels: int | None = None, block_size: int = 8
    ) -> None:
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        super().__init__(channels, inner_channels=inner, block_size=block_size)
        self.inner_channels, self.block_size = inner, block_size
        self.long = _GroupAttention(channels, inner)
        self.short = _GroupAttention(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        height, width = x.shape[-2:]
        blocks = self._blocks(height, width)
        tokens = x.flatten(2).mT.unflatten(1, (height, width))  # (B, H, W, C)
        tokens = self.long.out(self.long(tokens, blocks, long=True))
        attended = self.short(tokens, blocks, long=False)  # (B, H, W, d)
        return x + project_to_map(self.short.out, attended.flatten(1, 2), height, width)

    def _blocks(self, height: int, width: int) -> _Blocks:
        # A block is never larger than the map, so that no group is all padding.
        ph, pw = min(self.block_size, height), min(self.block_size, width)
        return _Blocks(ph, pw, -(-height // ph), -(-width // pw))


class _Blocks(NamedTuple):
    """How a grid is divided: ``qh x qw`` blocks of ``ph x pw`` positions."""

    ph: int
    pw: int
    qh: int
    qw: int

    def group(self, tokens: Tensor, *, long: bool) -> Tensor:
        """``(B, H, W, c)`` to ``(B, G, T, c)``, zeros where the grid was padded."""
        height, width = tokens.shape[1:3]
        bottom, right = self.qh * self.ph - height, self.qw * self.pw - width
        if bottom or right:
            tokens = pad(tokens, (0, 0, 0, right, 0, bottom))
        grid = tokens.unflatten(2, (self.qw, self.pw)).unflatten(1, (self.qh, self.ph))
        grid = grid.permute(0, 2, 4, 1, 3, 5) if long else grid.permute(0, 1, 3, 2, 4, 5)
        return grid.flatten(3, 4).flatten(1, 2)

    def ungroup(self, tokens: Tensor, height: int, width: int, *, long: bool) -> Tensor:
        """``(B, G, T, c)`` back to ``(B, H, W, c)``."""
        if long:
            grid = tokens.unflatten(2, (self.qh, self.qw)).unflatten(1, (self.ph, self.pw))
            grid = grid.permute(0, 3, 1, 4, 2, 5)  # (B, Qh, Ph, Qw, Pw, c)
        else:
            grid = tokens.unflatten(2, (self.ph, self.pw)).unflatten(1, (self.qh, self.qw))
            grid = grid.permute(0, 1, 3, 2, 4, 5)  # (B, Qh, Ph, Qw, Pw, c)
        return grid.flatten(3, 4).flatten(1, 2)[:, :height, :width]


class _GroupAttention(nn.Module):
    """Softmax attention within each group; ``out`` is applied by the caller."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * inner)
        self.out = nn.Linear(inner, channels)

    def forward(self, tokens: Tensor, blocks: _Blocks, *, long: bool) -> Tensor:
        """Tokens ``(B, H, W, C)`` to attended values ``(B, H, W, d)``."""
        height, width = tokens.shape[1:3]
        grouped = blocks.group(self.qkv(tokens), long=long)  # (B, G, T, 3d)
        mask = None
        if grouped.shape[1] * grouped.shape[2] > height * width:
            real = tokens.new_ones(1, height, width, 1, dtype=torch.bool)
            mask = blocks.group(real, long=long).mT  # (1, G, 1, T): keys that are not padding
        q, k, v = grouped.chunk(3, -1)  # (B, G, T, d)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return blocks.ungroup(attended, height, width, long=long)
