"""Frequency self-attention as the paper formulates it, without this library's shortcuts.

Source: F. Zhang, A. Panahi, G. Gao, "FsaNet: Frequency Self-attention for Semantic Segmentation",
arXiv 2211.15595, section III.

Legend: B batch, C channels, H x W grid, N = H*W positions, K kept coefficients, d query/key
channels, e value channels, P (N, K) the dense basis, s (B, C, K) the coefficients.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fsanet.attention.block import AttentionBlock
from fsanet.attention.dct import Band, BandLike, basis_dtype, dct_basis, dense_basis
from fsanet.attention.similarity import Similarity, attend
from fsanet.errors import InputError


class PaperFrequencyAttention(AttentionBlock):
    """Attention over K coefficients, transformed back to the map before projection and norm.

    Every round computes ``s = x P``, then q, k and v from s, ``a = v (k^T q) / N`` on K
    coefficients and the map ``a P^T``, followed by output projection and batch norm at N positions
    and the residual. Function, parameters and ``state_dict`` are those of
    :class:`fsanet.FrequencySelfAttention` with ``block="nonlocal"``, which is faster.

    P depends on the size of the map (the published code keeps that of the first size); it is cached
    for the last few sizes, in the dtype of the map.

    Args:
        channels: C.
        k: the band, as :meth:`fsanet.attention.dct.Band.of` reads it; clipped to the map.
        similarity: "dot" or "linear_softmax". The latter transforms q, k and v back to the map,
            since it needs their lengths at each position; the products are bracketed such that no
            N x N matrix arises, an order that the paper leaves open.
        recurrence: how often the block is applied, with the same weights.
        qk_channels: channels of queries and keys; C/2 by default.
        value_channels: channels of values; C/2 by default.
        zero_init: whether to start as the identity (batch norm weight at zero).

    Raises:
        InputError: for an invalid option, or an input of another shape.
    """

    def __init__(
        self,
        channels: int,
        *,
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        qk_channels: int | None = None,
        value_channels: int | None = None,
        zero_init: bool = True,
    ) -> None:
        if similarity not in ("dot", "linear_softmax"):
            raise InputError(f'similarity={similarity!r}: choose "dot" or "linear_softmax"')
        super().__init__(
            channels,
            similarity=similarity,
            recurrence=recurrence,
            qk_channels=qk_channels,
            value_channels=value_channels,
            zero_init=zero_init,
        )
        self.band = Band.of(k)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        self.check_input(x)
        height, width = x.shape[-2:]
        band = self.band.clip(height, width)
        basis = _basis(height, width, band, x.dtype, x.device)  # (N, K)
        for _ in range(self.recurrence):
            s = x.flatten(2) @ basis  # (B, C, K)
            q, k, v = (linear.weight @ s for linear in (self.query, self.key, self.value))
            if self.similarity == "dot":
                attended = v @ (k.mT @ q / (height * width))  # (B, e, K)
                attended = attended @ basis.T  # (B, e, N)
            else:
                q, k, v = (token @ basis.T for token in (q, k, v))  # (B, ., N)
                attended = attend(q, k, v, self.similarity, self.scale)  # (B, e, N)
            x = x + self.finish_map(attended.unflatten(2, (height, width)))
        return x


@lru_cache(maxsize=8)
def _basis(height: int, width: int, band: Band, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor created in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        wide = basis_dtype(dtype)
        rows = dct_basis(height, band.h0, band.h1, dtype=wide, device=device)  # type: ignore[arg-type]
        columns = dct_basis(width, band.w0, band.w1, dtype=wide, device=device)  # type: ignore[arg-type]
        return dense_basis(rows, columns).to(dtype)
