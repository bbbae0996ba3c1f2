"""Spatial-reduction attention: keys and values from a map reduced by a strided convolution.

Source: E. Xie, W. Wang, Z. Yu, A. Anandkumar, J. M. Alvarez, P. Luo, "SegFormer: Simple and
Efficient Design for Semantic Segmentation with Transformers", arXiv 2105.15203, section 3.1
(efficient self-attention); the layer norm after the reduction: W. Wang et al., "Pyramid Vision
Transformer", arXiv 2102.12122, section 3.3.

Legend: B batch, C channels, H x W grid, N = H*W positions, r ratio along an axis, M reduced
positions, h heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

from fsanet.bench.layers.map_layer import MapLayer, project_to_map
from fsanet.errors import InputError


class SpatialReductionAttention(MapLayer):
    """``y = x + Wo softmax attention(q(x), k(reduced x), v(reduced x))``, N queries, N / r^2 keys.

    The reduction is a convolution with kernel and stride r followed by layer norm; with r = 1 there
    is none, and this is regular multi-head attention. Maps whose size is not divisible by r are
    padded with zeros on all sides, so that no position is lost. The layer norm before the attention
    in a transformer block is left to the caller. Uses ``scaled_dot_product_attention``.

    Args:
        channels: C, also the number of channels of queries, keys and values.
        ratio: r; 4 (16 times fewer keys) as in SegFormer at stride 8.
        heads: h; by default heads of 64 channels as in SegFormer, or a single head if 64 does
            not divide C.

    Raises:
        InputError: for a size below 1, heads that do not divide the channels, or an input of
            another shape.
    """

    def __init__(self, channels: int, *, ratio: int = 4, heads: int | None = None) -> None:
        default = channels // 64 if channels % 64 == 0 else 1
        count = max(default, 1) if heads is None else heads
        super().__init__(channels, ratio=ratio, heads=count)
        if channels % count:
            raise InputError(f"heads={count} does not divide the {channels} channels")
        self.ratio, self.heads = ratio, count
        self.reduce: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if ratio > 1:
            self.reduce = nn.Conv2d(channels, channels, ratio, ratio)
            self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        height, width = x.shape[-2:]
        tokens = x.flatten(2).mT  # (B, N, C)
        sources = tokens
        if self.reduce is not None and self.norm is not None:
            # The convolution pads, half on each side, without a copy of the map.
            padding = [(-size % self.ratio + 1) // 2 for size in (height, width)]
            weight, bias = self.reduce.weight, self.reduce.bias
            reduced = conv2d(x, weight, bias, stride=self.ratio, padding=padding)
            sources = self.norm(reduced.flatten(2).mT)  # (B, M, C)
        q = self.query(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, h, N, C/h)
        kv = self.key_value(sources).unflatten(2, (2, self.heads, -1))  # (B, M, 2, h, C/h)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, M, C/h)
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        return x + project_to_map(self.out, attended, height, width)
