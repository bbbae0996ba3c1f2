"""Double attention: gather features into a few global ones, then distribute them to positions.

Source: Y. Chen, Y. Kalantidis, J. Li, S. Yan, J. Feng, "A^2-Nets: Double Attention Networks",
arXiv 1810.11579, section 3.

Legend: B batch, C channels, H x W grid, N = H*W positions, m feature channels, n attention maps.
"""

from __future__ import annotations

from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer


class DoubleAttention(MapLayer):
    """``y = x + Wo (A softmax_positions(G)^T) softmax_maps(D)``; A, G and D are projections of x.

    The product over positions comes first, with an m x n matrix in the middle, as in the paper.

    Args:
        channels: C.
        feature_channels: m; C/4 by default.
        attention_maps: n; C/4 by default.
    """

    def __init__(
        self,
        channels: int,
        *,
        feature_channels: int | None = None,
        attention_maps: int | None = None,
    ) -> None:
        quarter = max(channels // 4, 1)
        m = quarter if feature_channels is None else feature_channels
        n = quarter if attention_maps is None else attention_maps
        super().__init__(channels, feature_channels=m, attention_maps=n)
        self.sizes = [m, n, n]
        self.project = nn.Conv2d(channels, m + 2 * n, 1)
        self.out = nn.Conv2d(m, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        features, gather, distribute = self.project(x).flatten(2).split(self.sizes, 1)  # (B, ., N)
        gathered = features @ gather.softmax(2).mT  # (B, m, n)
        mixed = gathered @ distribute.softmax(1)  # (B, m, N)
        return x + self.out(mixed.unflatten(2, x.shape[-2:]))
