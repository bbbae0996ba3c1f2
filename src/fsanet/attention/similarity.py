"""The four similarities as plain functions of queries, keys and values at positions.

Legend: B batch, d query/key channels, e value channels, N query positions, M key positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["SIMILARITIES", "Similarity", "attend", "floor_squared_norm", "guard_denominator"]

Similarity = Literal["dot", "linear_softmax", "linear", "softmax"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


def floor_squared_norm(squared: Tensor) -> Tensor:
    """Squared lengths ``(..., N)``, kept away from zero relative to their mean over positions.

    Below sqrt(4 eps) times the root mean square, a length consists of rounding errors and has no
    meaningful direction; such positions are given that length.
    """
    limits = torch.finfo(squared.dtype)
    floor = squared.mean(-1, keepdim=True) * (4 * limits.eps) + limits.tiny**0.75
    return torch.maximum(squared, floor.detach())


def guard_denominator(denominator: Tensor, keys: int) -> Tensor:
    """A sum of ``keys`` weights, kept at least ``1e-6 * keys`` away from zero with its sign.

    Weights of "linear", 1 + s, can be negative, and those of "linear_softmax" can sum to zero (all
    keys exactly opposite to the query).
    """
    least = 1e-6 * keys
    sign = torch.where(denominator < 0, -1.0, 1.0).to(denominator.dtype)
    return torch.where(denominator.abs() < least, sign * least, denominator)


def attend(q: Tensor, k: Tensor, v: Tensor, similarity: Similarity, scale: float) -> Tensor:
    """Attention of every query position over every key position, without an N x M matrix.

    Args:
        q: queries ``(B, d, N)``.
        k: keys ``(B, d, M)``.
        v: values ``(B, e, M)``.
        similarity: "dot": ``v (k^T q) / M``. "linear_softmax": weights ``1 + cos(q, k)``, divided
            by their sum over the keys. "linear": weights ``1 + scale * q.k``, divided by their
            sum. "softmax": weights ``exp(scale * q.k)``, divided by their sum.
        scale: factor on ``q.k`` for "linear" and "softmax".

    Returns:
        ``(B, e, N)``.
    """
    keys = k.shape[-1]
    if similarity == "softmax":
        # The fused kernel needs a head axis and contiguous channels.
        q, k, v = (t.mT.contiguous().unsqueeze(1) for t in (q, k, v))  # (B, 1, N, .)
        return scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1).mT
    if similarity == "dot":
        return (v @ k.mT) @ q / keys  # (B, e, d) first, not (B, M, N)
    if similarity == "linear_softmax":
        q = q * floor_squared_norm(q.square().sum(1)).rsqrt().unsqueeze(1)
        k = k * floor_squared_norm(k.square().sum(1)).rsqrt().unsqueeze(1)
    else:
        k = k * scale
    numerator = v.sum(-1, keepdim=True) + (v @ k.mT) @ q  # (B, e, N)
    denominator = keys + k.sum(-1, keepdim=True).mT @ q  # (B, 1, N)
    return numerator / guard_denominator(denominator, keys)
