"""External attention: two small learned memories in place of keys and values.

Source: M.-H. Guo, Z.-N. Liu, T.-J. Mu, S.-M. Hu, "Beyond Self-attention: External Attention using
Two Linear Layers for Visual Tasks", arXiv 2105.02358, section 3.

Legend: B batch, C channels, H x W grid, N = H*W positions, S memory slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer


class ExternalAttention(MapLayer):
    """``y = x + Wo (norm(Mk q) Mv)`` with ``q = Wq x`` and two memories of S slots.

    Weights are normalised twice, in float32 or wider: by a softmax over positions for each slot,
    then by their sum over slots at each position.

    Args:
        channels: C, also the number of channels of the memories.
        slots: S; 64 as in the paper.
    """

    def __init__(self, channels: int, *, slots: int = 64) -> None:
        super().__init__(channels, slots=slots)
        self.slots = slots
        # No bias: it would be constant over positions, which their softmax cancels.
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key_memory = nn.Conv2d(channels, slots, 1, bias=False)
        self.value_memory = nn.Conv2d(slots, channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        scores = self.key_memory(self.query(x)).flatten(2)  # (B, S, N)
        # A softmax over N positions has values of about 1/N, too small for half precision.
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(2, dtype=wide)
        total = weights.sum(1, keepdim=True).clamp_min(torch.finfo(wide).tiny)  # (B, 1, N)
        weights = (weights / total).to(scores.dtype).unflatten(2, x.shape[-2:])  # (B, S, H, W)
        return x + self.out(self.value_memory(weights))
