"""The four similarities as plain functions of queries, keys and values at positions.

Legend: B batch, d query/key channels, e value channels, N query positions, M key positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fsanet.attention.dct import basis_dtype

__all__ = ["SIMILARITIES", "Similarity", "attend", "guard_denominator", "inverse_length"]

Similarity = Literal["dot", "linear_softmax", "linear", "softmax"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)


def inverse_length(squared: Tensor) -> Tensor:
    """``1 / length`` of tokens with squared lengths ``(..., N)``; 0 for a token that is zero.

    A token that is zero has no direction, so its cosine with every token is 0. It is recognised by
    a length of at most ``4 sqrt(eps)`` times the root mean square: from there on, rounding in the
    low-pass or in ``squared``, which may be negative by it, would make up a direction.
    """
    limits = torch.finfo(squared.dtype)
    least = squared.mean(-1, keepdim=True) * (16 * limits.eps) + limits.tiny**0.75
    known = squared > least
    return torch.where(known, squared, 1).rsqrt() * known


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
        q, k = _unit_length(q), _unit_length(k)
    else:
        k = k * scale
    numerator = v.sum(-1, keepdim=True) + (v @ k.mT) @ q  # (B, e, N)
    denominator = keys + k.sum(-1, keepdim=True).mT @ q  # (B, 1, N)
    return numerator / guard_denominator(denominator, keys)


def _unit_length(tokens: Tensor) -> Tensor:
    """Tokens ``(B, d, N)`` divided by their lengths; those that are zero stay zero."""
    squared = tokens.to(basis_dtype(tokens.dtype)).square().sum(1)  # (B, N)
    return tokens * inverse_length(squared).unsqueeze(1).to(tokens.dtype)
