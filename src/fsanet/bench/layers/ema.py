"""Expectation-maximisation attention: a few bases found by EM, and the map rebuilt from them.

Source: X. Li, Z. Zhong, J. Wu, Y. Yang, Z. Lin, H. Liu, "Expectation-Maximization Attention
Networks for Semantic Segmentation", arXiv 1907.13426, section 3.

Legend: B batch, C channels, H x W grid, N = H*W positions, K bases, z (B, K, N) responsibilities,
mu (B, C, K) bases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fsanet.bench.layers.map_layer import MapLayer

__all__ = ["EMAttention"]


class EMAttention(MapLayer):
    """``y = x + Wo (mu z)`` with bases and responsibilities of T EM iterations on ``Wi x``.

    E step: ``z = softmax over bases of mu^T x``. M step: ``mu = `` mean of x weighted by z, then
    scaled to unit length. Gradients pass through all iterations. In training the stored starting
    bases follow the mean of the batch's last ones by a moving average (of each process by itself);
    in evaluation they stay.

    Args:
        channels: C; the iterations run on C channels.
        bases: K.
        iterations: T.
        momentum: what the moving average keeps of the old bases.

    Raises:
        InputError: for a size below 1, or at run time an input of another shape.

    >>> layer = EMAttention(16, bases=4)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    bases: Tensor

    def __init__(
        self,
        channels: int,
        *,
        bases: int = 64,
        iterations: int = 3,
        momentum: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, bases=bases, iterations=iterations)
        self.iterations, self.momentum = iterations, momentum
        # No ReLU in front of the iterations: inner products have to be able to be negative.
        self.input = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        self.out = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)
        start = torch.empty(channels, bases, device=device, dtype=dtype)
        nn.init.kaiming_normal_(start)
        self.register_buffer("bases", normalize(start, dim=0))  # (C, K)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        tokens = self.input(x).flatten(2)  # (B, C, N)
        # A copy: the moving average changes the buffer before backward needs it.
        mu = self.bases.clone().to(tokens.dtype).expand(x.shape[0], -1, -1)  # (B, C, K)
        for _ in range(self.iterations):
            z = (mu.mT @ tokens).softmax(1)  # (B, K, N)
            # The division comes after the product: C x K numbers in place of K x N.
            mu = normalize((tokens @ z.mT) / z.sum(-1).unsqueeze(1), dim=1)  # (B, C, K)
        if self.training:
            with torch.no_grad():
                self.bases.lerp_(mu.mean(0).to(self.bases.dtype), 1 - self.momentum)
        rebuilt = (mu @ z).unflatten(2, x.shape[-2:])  # (B, C, H, W)
        return x + self.out(rebuilt)

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs of all products: two projections, two a step, the reconstruction."""
        c, bases = self.channels, self.bases.shape[1]
        return 2 * batch * height * width * (2 * c * c + (2 * self.iterations + 1) * c * bases)

    def extra_repr(self) -> str:
        return f"{self.channels}, bases={self.bases.shape[1]}, iterations={self.iterations}"
