"""Rounds of dot-product attention on coefficients.

Source: FsaNet (arXiv 2211.15595), section III; the identities that keep all rounds on coefficients
go beyond it (docs/method.md).

Legend: B batch, C channels, N = H*W positions, K kept frequencies, K' = K, or K + 1 where the
constant is one more coefficient, d query/key channels, e value channels. Tokens are frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fsanet.attention.block import AttentionBlock, project
from fsanet.attention.dct import Basis
from fsanet.attention.norm import Statistics, uses_batch_statistics

__all__ = ["dot_product", "dot_rounds"]


def dot_rounds(block: AttentionBlock, tokens: Tensor, basis: Basis) -> tuple[Tensor, Tensor | None]:
    """All rounds of "dot": ``s <- s + gate * norm(Wo (Wv s) (Wk s)^T (Wq s) / N)``.

    Args:
        block: weights, batch norm, bias and gate.
        tokens: ``(B, K, C)``, coefficients of the map.
        basis: of the band, not extended.

    Returns:
        ``(B, K, C)``, coefficients of the change of the map; and ``(B, C)``, a constant to add to
        it at every position, or None where there is none outside the band.
    """
    makes_constants = block.norm is not None or block.bias is not None or block.qkv_bias
    basis = basis._replace(extended=makes_constants and not basis.has_dc)
    affine: tuple[Tensor | None, Tensor | None] | None = None
    change: Tensor | None = None
    for round_ in range(block.recurrence):
        s = basis.pad(tokens)  # (B, K', C)
        q, k, v = (project(layer, s, basis) for layer in (block.query, block.key, block.value))
        out = dot_product(q, k, v, basis.positions)  # (B, K', e)
        if block.out is not None:
            out = linear(out, block.out.weight.to(out.dtype))  # (B, K', C)
        if affine is None or uses_batch_statistics(block.norm):
            scale, shift = block.output_affine(s.dtype, _statistics(out, basis))
            affine = scale, None if shift is None else basis.constant(shift)  # (C,), (1, K', C)
        out = _apply_affine(out, *affine)
        change = out if change is None else change + out
        if round_ + 1 < block.recurrence:
            tokens = tokens + out[:, : basis.frequencies]
    if change is None:
        raise ValueError(f"recurrence={block.recurrence}: at least 1 round is needed")
    if not basis.extended:
        return change, None
    return change[:, :-1], change[:, -1] / basis.positions**0.5


def dot_product(q: Tensor, k: Tensor, v: Tensor, positions: int) -> Tensor:
    """``(q k^T) v / N`` in the cheaper order of products.

    Args:
        q, k: ``(B, K', d)``.
        v: ``(B, K', e)``.
        positions: N.

    Returns:
        ``(B, K', e)``.
    """
    size, d, e = q.shape[1], q.shape[2], v.shape[2]
    if size * (d + e) <= 2 * d * e:
        return ((q @ k.mT) / positions) @ v  # (B, K', K') first
    return q @ ((k.mT @ v) / positions)  # (B, d, e) first


def _apply_affine(out: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None:
        return out if shift is None else out + shift
    return out * scale if shift is None else torch.addcmul(shift, out, scale)


def _statistics(out: Tensor, basis: Basis) -> Statistics:
    """Statistics of the map of coefficients ``out`` (B, K', C), by Parseval's theorem."""

    def statistics() -> tuple[Tensor, Tensor, int]:
        dc, others = (out[:, 0], out[:, 1:]) if basis.has_dc else (out[:, -1], out[:, :-1])
        return dc / basis.positions**0.5, others.square().sum(1), basis.positions  # (B, C) each

    return statistics
