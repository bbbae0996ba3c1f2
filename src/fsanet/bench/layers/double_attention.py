"""Double attention: features gathered into a few global ones, then distributed to positions.

Source: Y. Chen, Y. Kalantidis, J. Li, S. Yan, J. Feng, "A^2-Nets: Double Attention Networks",
arXiv 1810.11579, section 3.

Legend: B batch, C channels, H x W grid, N = H*W positions, m feature channels, n attention maps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer

__all__ = ["DoubleAttention"]


class DoubleAttention(MapLayer):
    """``y = x + Wo (A softmax_positions(G)^T) softmax_maps(D)``; A, G and D are projections of x.

    The product over positions comes first (m x n numbers in the middle): the bracket that the
    paper picks too.

    Args:
        channels: C.
        feature_channels: m; C/4 by default.
        attention_maps: n; C/4 by default.

    Raises:
        InputError: for a size below 1, or at run time an input of another shape.

    >>> layer = DoubleAttention(16)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        feature_channels: int | None = None,
        attention_maps: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        quarter = max(channels // 4, 1)
        m = quarter if feature_channels is None else feature_channels
        n = quarter if attention_maps is None else attention_maps
        super().__init__(channels, feature_channels=m, attention_maps=n)
        self.sizes = [m, n, n]
        self.project = nn.Conv2d(channels, m + 2 * n, 1, device=device, dtype=dtype)
        self.out = nn.Conv2d(m, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        features, gather, distribute = self.project(x).flatten(2).split(self.sizes, 1)  # (B, ., N)
        gathered = features @ gather.softmax(2).mT  # (B, m, n)
        mixed = gathered @ distribute.softmax(1)  # (B, m, N)
        return x + self.out(mixed.unflatten(2, x.shape[-2:]))

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs of all products: projections, gathering, distribution."""
        m, n, _ = self.sizes
        per_position = self.channels * (2 * m + 2 * n) + 2 * m * n
        return 2 * batch * height * width * per_position

    def extra_repr(self) -> str:
        return f"{self.channels}, feature_channels={self.sizes[0]}, attention_maps={self.sizes[1]}"
