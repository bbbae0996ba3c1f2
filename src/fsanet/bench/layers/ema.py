"""Expectation-maximisation attention: find a few bases by EM and rebuild the map from them.

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


class EMAttention(MapLayer):
    """``y = x + Wo (mu z)`` with bases and responsibilities of T EM iterations on ``Wi x``.

    E step: ``z = softmax over bases of mu^T x``. M step: ``mu`` = the mean of x weighted by z,
    normalised. Gradients pass through all iterations. During training the initial bases are a
    moving average of the final ones, averaged over the batch (separately in each process); during
    evaluation they are constant.

    Args:
        channels: C, also the number of channels of the iterations.
        bases: K.
        iterations: T.
        momentum: weight of the old bases in the moving average.
    """

    bases: Tensor

    def __init__(
        self, channels: int, *, bases: int = 64, iterations: int = 3, momentum: float = 0.9
    ) -> None:
        super().__init__(channels, bases=bases, iterations=iterations)
        self.iterations, self.momentum = iterations, momentum
        # No ReLU before the iterations: inner products must be able to be negative.
        self.input = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        start = torch.empty(channels, bases)
        nn.init.kaiming_normal_(start)
        self.register_buffer("bases", normalize(start, dim=0))  # (C, K)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        tokens = self.input(x).flatten(2)  # (B, C, N)
        # A copy, since the moving average changes the buffer before backward needs it.
        mu = self.bases.clone().to(tokens.dtype).expand(x.shape[0], -1, -1)  # (B, C, K)
        for _ in range(self.iterations):
            z = (mu.mT @ tokens).softmax(1)  # (B, K, N)
            # Divide after the product: C x K numbers rather than K x N.
            mu = normalize((tokens @ z.mT) / z.sum(-1).unsqueeze(1), dim=1)  # (B, C, K)
        if self.training:
            with torch.no_grad():
                self.bases.lerp_(mu.mean(0).to(self.bases.dtype), 1 - self.momentum)
        rebuilt = (mu @ z).unflatten(2, x.shape[-2:])  # (B, C, H, W)
        return x + self.out(rebuilt)
