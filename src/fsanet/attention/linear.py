"""Rounds of "linear_softmax" and "linear" on coefficients, with one scalar per position in between.

The weights of these similarities are normalised at each position, so the output of a round leaves
the band: it is a low-frequency map scaled at each position (:class:`ScaledMap`). All that later
rounds and batch norm need of it are sums over positions of products of basis functions. As every
basis function is a row function times a column function, those sums are two thin products; the
N x K basis P is never written.

Source: FsaNet (arXiv 2211.15595), section III; the identities that keep all rounds on coefficients
go beyond it (docs/method.md, "What stays in coefficient space").

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
K' = K, or K + 1 where the constant is one more coefficient, P (N, K') the basis and P_p its row at
position p, d query/key channels, J products per row of the grid. Tokens are frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from fsanet.attention.block import AttentionBlock, project
from fsanet.attention.dct import Basis, analyse, synthesise
from fsanet.attention.norm import Statistics, uses_batch_statistics
from fsanet.attention.similarity import guard_denominator, inverse_length

__all__ = ["ScaledMap", "linear_rounds", "row_factors"]


class ScaledMap(NamedTuple):
    """The map ``scale[p] * (P coefficients)[p] + offset_scale[p] * offset`` at position p.

    ``coefficients`` (B, K', C), ``scale`` (B, H, W), ``offset`` (B, C) and ``offset_scale``
    (B, H, W); without the offset where those two are None.
    """

    coefficients: Tensor
    scale: Tensor
    offset: Tensor | None = None
    offset_scale: Tensor | None = None


def linear_rounds(block: AttentionBlock, tokens: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
    """All rounds of "linear_softmax" or "linear".

    Args:
        block: weights, batch norm, bias and gate.
        tokens: ``(B, K, C)``, coefficients of the map.
        basis: of the band, not extended.

    Returns:
        The change of the map as the factors of :func:`row_factors`.
    """
    # Biases on queries, keys and values are constants, which a band without DC cannot represent.
    basis = basis._replace(extended=block.qkv_bias and not basis.has_dc)
    affine = None
    if not uses_batch_statistics(block.norm):
        affine = block.output_affine(tokens.dtype)
    outputs: list[ScaledMap] = []
    constant: Tensor | None = None
    for round_ in range(block.recurrence):
        out = _attend(block, basis.pad(tokens), basis)
        scale, shift = affine or block.output_affine(tokens.dtype, _statistics(out, basis))  # (C,)
        if scale is not None:
            offset = None if out.offset is None else out.offset * scale
            out = out._replace(coefficients=out.coefficients * scale, offset=offset)
        outputs.append(out)
        if shift is not None:
            constant = shift if constant is None else constant + shift
        if round_ + 1 < block.recurrence:
            tokens = tokens + _coefficients(out, basis)[:, : basis.frequencies]
            if shift is not None and basis.has_dc:
                tokens = tokens + basis.constant(shift)
    return row_factors(outputs, basis, constant)


def row_factors(
    maps: Sequence[ScaledMap], basis: Basis, constant: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The sum of the maps and of ``constant`` (C,), as one product per row of the grid.

    Along one row the scale of a position is absorbed by the column functions. So the row is a
    product over J = kw + 1 columns a map, in place of K + 1.

    Returns:
        ``left (B, H, J, C)`` and ``right (B, H, J, W)``: the sum is ``left^T @ right`` in each row.
    """
    (kh, kw), (height, width) = (basis.rows.shape[0], basis.columns.shape[0]), basis.grid
    batch, _, channels = maps[0].coefficients.shape
    lefts, rights = [], []

    def add(per_channel: Tensor, per_position: Tensor) -> None:
        """The product of ``(B, C)`` and ``(B, H, W)``."""
        lefts.append(per_channel[:, None, None].expand(batch, height, 1, channels))
        rights.append(per_position[:, :, None])  # (B, H, 1, W)

    for part in maps:
        band = part.coefficients[:, : kh * kw].reshape(batch, kh, kw * channels)
        lefts.append((basis.rows.T @ band).unflatten(2, (kw, channels)))  # (B, H, kw, C)
        rights.append(part.scale[:, :, None] * basis.columns)  # (B, H, kw, W)
        if basis.extended:
            add(part.coefficients[:, -1] / basis.positions**0.5, part.scale)
        if part.offset is not None and part.offset_scale is not None:
            add(part.offset, part.offset_scale)
    if constant is not None:
        ones = rights[0].new_ones(1, 1, 1).expand(batch, height, width)
        add(constant.expand(batch, channels), ones)
    return torch.cat(lefts, 2), torch.cat(rights, 2)


def _attend(block: AttentionBlock, s: Tensor, basis: Basis) -> ScaledMap:
    """One round over tokens (B, K', C), before batch norm, bias and gate.

    With unit-length queries ``q_p / |q_p|`` the output at p is the weighted sum of values,
    ``P_p A / |q_p| + b``, over the sum of weights, ``N + q_p . sum(keys) / |q_p|``.
    """
    positions, dc = basis.positions, basis.constant_index
    q, k, v = (project(layer, s, basis) for layer in (block.query, block.key, block.value))
    if block.out is not None:
        v = linear(v, block.out.weight.to(v.dtype))  # (B, K', C)
    scores = q @ k.mT  # (B, K', K')
    if block.similarity == "linear_softmax":
        q_inverse = _inverse_lengths(_quadratic(q @ q.mT, basis))  # (B, H, W)
        k_inverse = _inverse_lengths(_quadratic(k @ k.mT, basis))  # (B, H, W)
        a = (scores @ _weighted_gram(k_inverse, basis)) @ v  # (B, K', C)
        key_sum = _to_coefficients(k_inverse, basis)[:, None] @ k  # (B, 1, d)
        similarity_sum = _to_map((q @ key_sum.mT).squeeze(-1), basis) * q_inverse  # (B, H, W)
        weight = guard_denominator(positions + similarity_sum, positions).reciprocal()
        if dc is None:  # every basis function sums to zero, so the values do
            return ScaledMap(a, q_inverse * weight)
        return ScaledMap(a, q_inverse * weight, v[:, dc] * positions**0.5, weight)
    a = (scores * block.scale) @ v
    if dc is None:  # every basis function sums to zero, so keys and values do
        return ScaledMap(a, s.new_full((1, 1, 1), 1 / positions).expand(s.shape[0], *basis.grid))
    key_sum = k[:, dc : dc + 1] * (block.scale * positions**0.5)  # (B, 1, d)
    similarity_sum = _to_map((q @ key_sum.mT).squeeze(-1), basis)  # (B, H, W)
    weight = guard_denominator(positions + similarity_sum, positions).reciprocal()
    values = pad(v[:, dc : dc + 1] * positions, (0, 0, dc, a.shape[1] - 1 - dc))
    return ScaledMap(a + values, weight)  # the sum of values is a constant: part of DC


def _inverse_lengths(squared: Tensor) -> Tensor:
    """``1 / length`` at every position (B, H, W) of tokens with these squared lengths.

    A length below 1e-3 of the root mean square has lost digits in the Gram matrix: a length of r
    times it has a relative error of ``eps / r^2``.
    """
    return inverse_length(squared.flatten(1)).view_as(squared)


def _coefficients(out: ScaledMap, basis: Basis) -> Tensor:
    """``P^T`` of the map: (B, K', C)."""
    c = _weighted_gram(out.scale, basis) @ out.coefficients
    if out.offset is None or out.offset_scale is None:
        return c
    return c + _to_coefficients(out.offset_scale, basis)[..., None] * out.offset[:, None]


def _statistics(out: ScaledMap, basis: Basis) -> Statistics:
    """Statistics of a scaled map.

    Its scale is split into a centre and the deviation from it, so that nothing large cancels. The
    result is the same for any centre. The mean weighted by ``|P_p|^2`` is close to the scale where
    the map is large; a plain mean follows the large scales of positions where the map is small.
    """

    def statistics() -> tuple[Tensor, Tensor, int]:
        positions, dc = basis.positions, basis.constant_index
        energies = (f.square().sum(0, keepdim=True) for f in (basis.rows, basis.columns))
        centre = analyse(out.scale, *energies) / basis.frequencies  # (B, 1, 1)
        deviation = out.scale - centre  # (B, H, W)
        deviation_sums = _to_coefficients(deviation, basis)  # (B, K'): P^T deviation
        varying = torch.ones_like(deviation_sums[0])  # (K',): 0 for the constant, 1 for all others
        basis_sums = deviation_sums  # (B, K'): sums over positions of scale * P
        if dc is not None:
            varying = varying - pad(varying.new_ones(1), (dc, varying.shape[0] - 1 - dc))
            basis_sums = basis_sums + centre[:, 0] * (1 - varying) * positions**0.5
        sums = (basis_sums[:, None] @ out.coefficients)[:, 0]  # (B, C)
        # Gram matrix of scale * P less its means: centre * varying * P + deviation * P - means
        mixed = centre * varying[:, None] * _weighted_gram(deviation, basis)  # (B, K', K')
        gram = torch.diag_embed(centre[:, 0].square() * varying) + mixed + mixed.mT
        gram = gram + _weighted_gram(deviation.square(), basis)
        gram = gram - deviation_sums[:, :, None] * deviation_sums[:, None] / positions
        energy = ((gram @ out.coefficients) * out.coefficients).sum(1)  # (B, C)
        if out.offset is not None and out.offset_scale is not None:
            sums = sums + out.offset_scale.sum((-2, -1))[:, None] * out.offset
            centred = out.offset_scale - out.offset_scale.mean((-2, -1), keepdim=True)
            cross = centre[:, 0] * varying * _to_coefficients(centred, basis)
            cross = cross + _to_coefficients(deviation * centred, basis)  # (B, K')
            energy = energy + 2 * (cross[:, None] @ out.coefficients)[:, 0] * out.offset
            energy = energy + centred.square().sum((-2, -1))[:, None] * out.offset.square()
        return sums / positions, energy, positions

    return statistics


# -- sums over positions of products of basis functions


def _to_map(c: Tensor, basis: Basis) -> Tensor:
    """``P c``: coefficients (B, K') to a map (B, H, W)."""
    band = c[..., : basis.frequencies]
    plane = band.unflatten(-1, (basis.rows.shape[0], basis.columns.shape[0]))  # (B, kh, kw)
    y = synthesise(plane, basis.rows, basis.columns)  # (B, H, W)
    if not basis.extended:
        return y
    return y + (c[..., -1] / basis.positions**0.5)[..., None, None]


def _to_coefficients(g: Tensor, basis: Basis) -> Tensor:
    """``P^T g``: a map (B, H, W) to coefficients (B, K')."""
    c = analyse(g, basis.rows, basis.columns).flatten(-2)  # (B, K)
    if not basis.extended:
        return c
    return torch.cat([c, (g.sum((-2, -1)) / basis.positions**0.5)[..., None]], -1)


def _quadratic(gram: Tensor, basis: Basis) -> Tensor:
    """``P_p gram P_p^T`` at every position p: symmetric (B, K', K') to a map (B, H, W)."""
    kh, kw = basis.rows.shape[0], basis.columns.shape[0]
    band = gram[..., : kh * kw, : kh * kw]  # (B, K, K)
    pairs = band.unflatten(-1, (kh, kw)).unflatten(-3, (kh, kw))  # (B, kh, kw, kh, kw)
    pairs = pairs.movedim(-2, -3).flatten(-4, -3).flatten(-2)  # (B, kh kh, kw kw)
    y = synthesise(pairs, _pairs(basis.rows), _pairs(basis.columns))  # (B, H, W)
    if not basis.extended:
        return y
    last = gram[..., -1, :]  # (B, K'); symmetry: all but its end occur twice
    return y + _to_map((last + pad(last[..., :-1], (0, 1))) / basis.positions**0.5, basis)


def _weighted_gram(g: Tensor, basis: Basis) -> Tensor:
    """``P^T diag(g) P``: a map (B, H, W) to (B, K', K')."""
    kh, kw = basis.rows.shape[0], basis.columns.shape[0]
    pairs = analyse(g, _pairs(basis.rows), _pairs(basis.columns))  # (B, kh kh, kw kw)
    band = pairs.unflatten(-1, (kw, kw)).unflatten(-3, (kh, kh))  # (B, kh, kh, kw, kw)
    band = band.movedim(-3, -2).flatten(-2).flatten(-3, -2)  # (B, K, K)
    if not basis.extended:
        return band
    edge = _to_coefficients(g, basis) / basis.positions**0.5  # (B, K + 1)
    wide = torch.cat([pad(band, (0, 0, 0, 1)), edge[..., None]], -1)  # (B, K + 1, K + 1)
    return wide + pad(edge[..., None, :-1], (0, 1, band.shape[-1], 0))


def _pairs(basis: Tensor) -> Tensor:
    """All products of two functions of an axis: (k, n) to (k k, n)."""
    return (basis[:, None] * basis).flatten(0, 1)
