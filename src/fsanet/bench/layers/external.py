"""External attention: two small learned memories stand in for keys and values.

Source: M.-H. Guo, Z.-N. Liu, T.-J. Mu, S.-M. Hu, "Beyond Self-attention: External Attention using
Two Linear Layers for Visual Tasks", arXiv 2105.02358, section 3.

Legend: B batch, C channels, H x W grid, N = H*W positions, S memory slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.bench.layers.map_layer import MapLayer

__all__ = ["ExternalAttention"]


class ExternalAttention(MapLayer):
    """``y = x + Wo (norm(Mk q) Mv)`` with ``q = Wq x`` and two memories of S slots.

    Double normalisation: softmax over positions for each slot, then division by the sum over
    slots at each position. Normalised in float32 at least.

    Args:
        channels: C, also the width of the memories.
        slots: S; 64 as in the paper.

    Raises:
        InputError: for a size below 1, or at run time an input of another shape.

    >>> layer = ExternalAttention(16)
    >>> layer(torch.randn(1, 16, 5, 7)).shape
    torch.Size([1, 16, 5, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        slots: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, slots=slots)
        self.slots = slots
        # No bias: it would be one constant a slot, and softmax over positions takes that out.
        self.query = nn.Conv2d(channels, channels, 1, bias=False, device=device, dtype=dtype)
        self.key_memory = nn.Conv2d(channels, slots, 1, bias=False, device=device, dtype=dtype)
        self.value_memory = nn.Conv2d(slots, channels, 1, bias=False, device=device, dtype=dtype)
        self.out = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        scores = self.key_memory(self.query(x)).flatten(2)  # (B, S, N)
        # Over N positions a softmax is of size 1/N: too small for half precision.
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(2, dtype=wide)
        total = weights.sum(1, keepdim=True).clamp_min(torch.finfo(wide).tiny)  # (B, 1, N)
        weights = (weights / total).to(scores.dtype).unflatten(2, x.shape[-2:])  # (B, S, H, W)
        return x + self.out(self.value_memory(weights))

    def flops(self, batch: int, height: int, width: int) -> int:
        """Forward FLOPs of all products: two projections, two memories."""
        c = self.channels
        return 2 * batch * height * width * (2 * c * c + 2 * c * self.slots)

    def extra_repr(self) -> str:
        return f"{self.channels}, slots={self.slots}"
