"""Regular self-attention that stores the N x N matrix: the baseline of the FsaNet paper.

Source: X. Wang, R. Girshick, A. Gupta, K. He, "Non-local Neural Networks", arXiv 1711.07971,
section 3 (embedded Gaussian).

Legend: B batch, C channels, H x W grid, N = H*W positions, d query/key channels, e value channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import conv2d

from fsanet.attention import SpatialSelfAttention


class MaterialisedSelfAttention(SpatialSelfAttention):
    """Softmax self-attention that stores its N x N weights, ``y = x + norm(Wo (v softmax(q k)))``.

    Function, arguments and ``state_dict`` are those of :class:`fsanet.SpatialSelfAttention` with
    ``similarity="softmax"``, which uses a faster kernel,
    :func:`torch.nn.functional.scaled_dot_product_attention`.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, similarity="softmax", **options)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        for _ in range(self.recurrence):
            q, k, v = (
                conv2d(x, linear.weight[:, :, None, None], linear.bias).flatten(2)  # (B, ., N)
                for linear in (self.query, self.key, self.value)
            )
            weights = ((q * self.scale).mT @ k).softmax(-1)  # (B, N queries, N keys)
            attended = v @ weights.mT  # (B, e, N)
            x = x + self.finish_map(attended.unflatten(2, x.shape[-2:]))
        return x
