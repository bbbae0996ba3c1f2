"""Frequency self-attention as the paper formulates it, without this library's shortcuts.

Source: F. Zhang, A. Panahi, G. Gao, "FsaNet: Frequency Self-attention for Semantic Segmentation",
arXiv 2211.15595, section III.

Legend: B batch, C channels, H x W grid, N = H*W positions, K kept coefficients, d query/key
channels, e value channels, P (N, K) the dense basis, s (B, C, K) the coefficients.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fsanet.attention import FrequencySelfAttention
from fsanet.attention.dct import Band, basis_dtype, dct_basis, dense_basis
from fsanet.attention.similarity import attend
from fsanet.errors import InputError


class PaperFrequencyAttention(FrequencySelfAttention):
    """Attention over K coefficients, transformed back to the map before projection and norm.

    Every round computes ``s = x P``, then q, k and v from s, ``a = v (k^T q) / N`` on K
    coefficients and the map ``a P^T``, followed by output projection and batch norm at N positions
    and the residual. Function, arguments and ``state_dict`` are those of
    :class:`fsanet.FrequencySelfAttention` with ``block="nonlocal"``, which is faster.

    P depends on the size of the map (the published code keeps that of the first size); it is cached
    for the last few sizes, in the dtype of the map. "linear_softmax" transforms q, k and v back to
    the map, since it needs their lengths at each position; the products are bracketed such that no
    N x N matrix arises, an order that the paper leaves open.

    Raises:
        InputError: for options that the paper does not have, or an input of another shape.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        if self.similarity not in ("dot", "linear_softmax"):
            raise InputError(f'similarity={self.similarity!r}: choose "dot" or "linear_softmax"')
        if self.block != "nonlocal" or self.qkv_bias:
            raise InputError('the published layer has block="nonlocal" and no qkv_bias')

    def forward(self, x: Tensor, *, inplace: bool | None = None) -> Tensor:
        """``(B, C, H, W)`` to the same shape, always a new map: ``inplace`` is ignored."""
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
