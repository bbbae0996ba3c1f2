"""Regular self-attention over all positions: the layer that frequency attention replaces.

Sources: non-local networks (arXiv 1711.07971), section 3.2; the linear forms: FsaNet
(arXiv 2211.15595), section III.

Legend: B batch, C channels, H x W grid, N = H*W positions, e value channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import conv2d

from fsanet.attention.block import AttentionBlock
from fsanet.attention.similarity import attend

__all__ = ["SpatialSelfAttention", "spatial_rounds"]


class SpatialSelfAttention(AttentionBlock):
    """Self-attention of every position over every position, ``y = x + attention(x)``.

    Arguments (except ``k``), parameters and ``state_dict`` are those of
    :class:`FrequencySelfAttention`, so weights move between the two. Softmax runs through
    :func:`torch.nn.functional.scaled_dot_product_attention`; the other similarities are bracketed
    so that there is no N x N matrix.

    Raises:
        InputError: for an invalid option, or an input of another shape.

    >>> import torch
    >>> layer = SpatialSelfAttention(32, similarity="softmax")
    >>> layer(torch.randn(1, 32, 9, 14)).shape
    torch.Size([1, 32, 9, 14])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        return spatial_rounds(self, x)


def spatial_rounds(block: AttentionBlock, x: Tensor) -> Tensor:
    """All rounds of attention of every position over every position, (B, C, H, W) to the same."""
    for _ in range(block.recurrence):
        q, k, v = (
            conv2d(x, linear.weight[:, :, None, None], linear.bias).flatten(2)  # (B, ., N)
            for linear in (block.query, block.key, block.value)
        )
        attended = attend(q, k, v, block.similarity, block.scale)  # (B, e, N)
        x = x + block.finish_map(attended.unflatten(2, x.shape[-2:]))
    return x
