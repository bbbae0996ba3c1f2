"""Linear attention: a kernel with positive features in place of softmax.

Source: A. Katharopoulos, A. Vyas, N. Pappas, F. Fleuret, "Transformers are RNNs: Fast
Autoregressive Transformers with Linear Attention", arXiv 2006.16236, section 3.2.

Legend: B batch, C channels, H x W grid, N = H*W positions, h heads, d inner channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from fsanet.bench.layers.map_layer import MapLayer
from fsanet.errors import InputError


class LinearAttention(MapLayer):
    """``y = x + Wo (sum_j v_j f(k_j)^T f(q_i) / sum_j f(k_j)^T f(q_i))``, ``f(t) = elu(t) + 1``.

    It is not causal, so both sums over keys are computed once: two matrix products per head and no
    N x N matrix.

    Args:
        channels: C.
        inner_channels: channels of queries, keys and values, over all heads; C/2 by default.
        heads: h; by default 8 as in the paper, or the largest common divisor of 8 and the inner
            channels.

    Raises:
        InputError: for a size below 1, heads that do not divide the inner channels, or an input of
            another shape.
    """

    def __init__(
        self, channels: int, *, inner_channels: int | None = None, heads: int | None = None
    ) -> None:
        inner = max(channels // 2, 1) if inner_channels is None else inner_channels
        count = math.gcd(8, inner) if heads is None else heads
        super().__init__(channels, inner_channels=inner, heads=count)
        if inner % count:
            raise InputError(f"heads={count} does not divide the {inner} inner channels")
        self.inner_channels, self.heads = inner, count
        self.qkv = nn.Conv2d(channels, 3 * inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        tokens = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))  # (B, 3, h, d, N)
        q, k, v = tokens.unbind(1)  # (B, h, d, N)
        q = elu(q) + 1
        k = (elu(k) + 1) / k.shape[-1]  # means rather than sums, for half precision
        summary = v @ k.mT  # (B, h, d values, d keys)
        total = k.sum(-1).unsqueeze(2) @ q  # (B, h, 1, N)
        attended = (summary @ q) / total.clamp_min(torch.finfo(total.dtype).tiny)  # (B, h, d, N)
        return x + self.out(attended.flatten(1, 2).unflatten(2, x.shape[-2:]))
