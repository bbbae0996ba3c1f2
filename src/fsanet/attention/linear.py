"""The linear similarities: rounds on coefficients, with one scalar a position between them.

Source: FsaNet (arXiv 2211.15595), section III; the identities go past it (docs/method.md, "What
stays in coefficient space").

Legend: B batch, C channels, H x W grid, N = H*W positions, K kept frequencies, K' = K, or K + 1
where the constant is one more coefficient, P (N, K') the basis, d query/key channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fsanet.attention.block import AttentionBlock
from fsanet.attention.dot import on_dc, output_affine, project
from fsanet.attention.norm import Statistics, uses_batch_statistics
from fsanet.attention.similarity import floor_squared_norm, guard_denominator
from fsanet.attention.spectrum import Grid, Spectrum

__all__ = ["Term", "linear_rounds"]


class Term(NamedTuple):
    """A map that is ``first[p] * (P a)[p] + second[p] * b`` at position p.

    ``a`` (B, K', C), ``first`` (B, H, W), ``b`` (B, C) and ``second`` (B, H, W); no second part
    where those are None.
    """

    a: Tensor
    first: Tensor
    b: Tensor | None = None
    second: Tensor | None = None


def linear_rounds(
    layer: AttentionBlock, spectrum: Spectrum
) -> tuple[list[Term], Grid, Tensor | None]:
    """All rounds of "linear_softmax" or "linear".

    Returns:
        One term a round, whose sum is added to the input; the grid their ``a`` belongs to; and
        ``(C,)``, a value to add at every position, or None.
    """
    positions = spectrum.positions
    # The tokens' biases need the constant; a band that lacks it gets it as one more coefficient.
    extended = not spectrum.has_dc and layer.qkv_bias
    grid = Grid(spectrum.rows, spectrum.columns, extended)
    dc = spectrum.size if extended else 0 if spectrum.has_dc else None
    band = spectrum.tokens
    affine = None if uses_batch_statistics(layer.norm) else output_affine(layer, band)
    terms: list[Term] = []
    total: Tensor | None = None
    for round_ in range(layer.recurrence):
        s = pad(band, (0, 0, 0, 1)) if extended else band  # (B, K', C)
        term = _attend(layer, s, grid, dc)
        scale, constant = affine or output_affine(layer, s, _statistics(term, grid, dc))
        if scale is not None:
            b = None if term.b is None else term.b * scale
            term = term._replace(a=term.a * scale, b=b)
        terms.append(term)
        if constant is not None:
            total = constant if total is None else total + constant
        if round_ + 1 < layer.recurrence:
            band = band + _coefficients(term, grid)[:, : spectrum.size]
            if constant is not None and spectrum.has_dc:
                band = band + on_dc(constant, 0, spectrum.size, positions)
    return terms, grid, total


def _attend(layer: AttentionBlock, s: Tensor, grid: Grid, dc: int | None) -> Term:
    """One round before batch norm, bias and gate.

    The sum of weighted values is ``P_p A / |q_p| + b``, over ``N + q_p . sum(keys) / |q_p|``.
    """
    positions = grid.positions
    q, k, v = (project(m, s, dc or 0, positions) for m in (layer.query, layer.key, layer.value))
    if layer.out is not None:
        v = linear(v, layer.out.weight.to(v.dtype))  # (B, K', C)
    scores = q @ k.mT  # (B, K', K')
    if layer.similarity == "linear_softmax":
        q_inverse = _inverse_lengths(grid.quadratic(q @ q.mT))  # (B, H, W)
        k_inverse = _inverse_lengths(grid.quadratic(k @ k.mT))
        a = (scores @ grid.weighted_gram(k_inverse)) @ v  # (B, K', C)
        key_sum = grid.analyse(k_inverse)[:, None] @ k  # (B, 1, d)
        similarity_sum = grid.synthesise((q @ key_sum.mT).squeeze(-1)) * q_inverse  # (B, H, W)
        weight = guard_denominator(positions + similarity_sum, positions).reciprocal()
        if dc is None:
            return Term(a, q_inverse * weight)
        return Term(a, q_inverse * weight, v[:, dc] * positions**0.5, weight)
    a = (scores * layer.scale) @ v
    if dc is None:  # every basis function sums to zero: so do keys and values
        return Term(a, s.new_full((1, 1, 1), 1 / positions).expand(s.shape[0], *grid.shape))
    key_sum = k[:, dc : dc + 1] * (layer.scale * positions**0.5)  # (B, 1, d)
    similarity_sum = grid.synthesise((q @ key_sum.mT).squeeze(-1))  # (B, H, W)
    weight = guard_denominator(positions + similarity_sum, positions).reciprocal()
    values = pad(v[:, dc : dc + 1] * positions, (0, 0, dc, a.shape[1] - 1 - dc))
    return Term(a + values, weight)  # the sum of values is a constant: it sits on DC


def _inverse_lengths(squared: Tensor) -> Tensor:
    """``1 / length`` at every position (B, H, W) of tokens with these squared lengths."""
    return floor_squared_norm(squared.flatten(1)).rsqrt().view_as(squared)


def _coefficients(term: Term, grid: Grid) -> Tensor:
    """``P^T`` of the term's map: (B, K', C)."""
    c = grid.weighted_gram(term.first) @ term.a
    if term.b is None or term.second is None:
        return c
    return c + grid.analyse(term.second)[..., None] * term.b[:, None]


def _statistics(term: Term, grid: Grid, dc: int | None) -> Statistics:
    def of_term() -> tuple[Tensor, Tensor, int]:
        """Mean and centred energy of the term's map, (B, C) each.

        ``first`` is taken as its mean and the rest around it, so that nothing large cancels.
        """
        positions = grid.positions
        level = term.first.mean((-2, -1), keepdim=True)  # (B, 1, 1)
        rest = term.first - level  # (B, H, W)
        moved = grid.analyse(rest)  # (B, K'): P^T rest
        still = torch.ones_like(moved[0])
        if dc is not None:  # the constant part of P a has no spread
            still = still - pad(still.new_ones(1), (dc, still.shape[0] - 1 - dc))
        mean_of_basis = moved  # (B, K'), N times the mean of first * P
        if dc is not None:
            mean_of_basis = moved + level[:, 0] * (1 - still) * positions**0.5
        mean = (mean_of_basis[:, None] @ term.a)[:, 0]  # (B, C)
        # Gram matrix of  level * still * P + (rest * P - its mean)
        across = level * still[:, None] * grid.weighted_gram(rest)  # (B, K', K')
        gram = torch.diag_embed(level[:, 0].square() * still) + across + across.mT
        gram = gram + grid.weighted_gram(rest.square())
        gram = gram - moved[:, :, None] * moved[:, None] / positions
        energy = ((gram @ term.a) * term.a).sum(1)  # (B, C)
        if term.b is not None and term.second is not None:
            mean = mean + term.second.sum((-2, -1))[:, None] * term.b
            rest_2 = term.second - term.second.mean((-2, -1), keepdim=True)
            cross = level[:, 0] * still * grid.analyse(rest_2) + grid.analyse(rest * rest_2)
            energy = energy + 2 * (cross[:, None] @ term.a)[:, 0] * term.b
            energy = energy + rest_2.square().sum((-2, -1))[:, None] * term.b.square()
        return mean / positions, energy, positions

    return of_term
