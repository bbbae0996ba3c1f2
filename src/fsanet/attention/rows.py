"""One row of the N x N matrix of attention: how much a position takes from every other.

No layer writes that matrix. A row of it costs little: the query of one position, and a map of its
products with all keys, which are synthesised from K coefficients.

Source: FsaNet (arXiv 2211.15595), section III; docs/method.md.

Legend: B batch, C channels, H x W grid, N = H*W positions, K' coefficients, d query/key channels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import linear

from fsanet.attention.block import AttentionBlock, project
from fsanet.attention.dct import Basis, analyse, basis_dtype, full_precision, synthesise
from fsanet.attention.frequency import FrequencySelfAttention
from fsanet.attention.norm import uses_batch_statistics
from fsanet.attention.similarity import guard_denominator, inverse_length
from fsanet.attention.spatial import SpatialSelfAttention
from fsanet.errors import InputError, check_range

__all__ = ["attention_row"]


def attention_row(
    layer: AttentionBlock, x: Tensor, position: tuple[int, int], *, round_: int = 1
) -> Tensor:
    """The weights with which the output at a position sums up the values of all positions.

    In a round, ``sum over (h, w) of row[h, w] * value[h, w]`` is what the layer computes there
    before its output projection, batch norm, bias and gate. The weights add up to 1, except for
    "dot", where they are ``k.q / N`` and of either sign ("linear" may have negative ones, too).
    For :class:`FrequencySelfAttention` queries and keys are those of the low-passed map.

    Args:
        layer: a :class:`FrequencySelfAttention` or :class:`SpatialSelfAttention`.
        x: ``(B, C, H, W)``, the input of the layer.
        position: (row, column) on the H x W grid.
        round_: which of the layer's rounds, from 1. For later ones than the first, batch norm has
            to use its running averages (``layer.eval()``).

    Returns:
        ``(B, H, W)``, at least float32.

    Raises:
        InputError: another layer or input, a position outside the map, or no such round.

    >>> layer = FrequencySelfAttention(16, k=4, similarity="softmax")
    >>> attention_row(layer, torch.randn(1, 16, 9, 14), (3, 5)).sum().round().item()
    1.0
    """
    if type(layer) not in (FrequencySelfAttention, SpatialSelfAttention):
        raise InputError(
            f"{type(layer).__name__}: rows are known of FrequencySelfAttention and "
            "SpatialSelfAttention, whose keys are the positions of the map"
        )
    layer.check_input(x)
    height, width = x.shape[-2:]
    check_range("row", position[0], 0, height - 1)
    check_range("column", position[1], 0, width - 1)
    check_range("round", round_, 1, layer.recurrence)
    if round_ > 1 and uses_batch_statistics(layer.norm):
        raise InputError(
            f"round {round_} follows a batch norm in training mode; call eval() on the layer"
        )
    one_round = copy.copy(layer)
    one_round.recurrence = 1
    if isinstance(one_round, FrequencySelfAttention):
        one_round.inplace = False  # the map is the caller's
    for _ in range(round_ - 1):
        x = one_round(x)
    with full_precision(x):
        x = x.to(basis_dtype(x.dtype))
        if isinstance(layer, FrequencySelfAttention):
            return _row_from_coefficients(layer, x, position)
        return _row_from_positions(layer, x, position)


def _row_from_coefficients(
    layer: FrequencySelfAttention, x: Tensor, position: tuple[int, int]
) -> Tensor:
    basis = Basis.of(x, layer.band.clip(*x.shape[-2:]))
    basis = basis._replace(extended=layer.qkv_bias and not basis.has_dc)
    s = basis.pad(basis.to_tokens(analyse(x, basis.rows, basis.columns)))  # (B, K', C)
    q, k = project(layer.query, s, basis), project(layer.key, s, basis)  # (B, K', d)
    row, column = position
    here = basis._replace(
        rows=basis.rows[:, row : row + 1], columns=basis.columns[:, column : column + 1]
    )
    query = _synthesise(q, here, basis.positions)[..., 0]  # (B, d, 1)
    scores = _synthesise(k @ query, basis, basis.positions)[:, 0]  # (B, H, W)
    if layer.similarity != "linear_softmax":
        return _weights(layer, scores)
    q_squared, k_squared = (
        _synthesise(tokens, basis, basis.positions).square().sum(1) for tokens in (q, k)
    )  # (B, H, W)
    return _cosine_weights(scores, q_squared, k_squared, position)


def _row_from_positions(layer: AttentionBlock, x: Tensor, position: tuple[int, int]) -> Tensor:
    tokens = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    q, k = (
        linear(tokens, part.weight.to(x.dtype), None if part.bias is None else part.bias.to(x))
        for part in (layer.query, layer.key)
    )  # (B, H, W, d)
    scores = (k @ q[:, position[0], position[1], None, :, None])[..., 0]  # (B, H, W)
    if layer.similarity != "linear_softmax":
        return _weights(layer, scores)
    return _cosine_weights(scores, q.square().sum(-1), k.square().sum(-1), position)


def _synthesise(tokens: Tensor, basis: Basis, positions: int) -> Tensor:
    """Coefficients (B, K', c) to a map (B, c, H, W) on the grid of the basis."""
    plane = basis.to_plane(tokens[:, : basis.frequencies])  # (B, c, kh, kw)
    y = synthesise(plane, basis.rows, basis.columns)  # (B, c, H, W)
    if not basis.extended:
        return y
    return y + (tokens[:, -1] / positions**0.5)[..., None, None]


def _cosine_weights(
    scores: Tensor, q_squared: Tensor, k_squared: Tensor, position: tuple[int, int]
) -> Tensor:
    """Weights of "linear_softmax": products and squared lengths, (B, H, W) each, to a row."""
    grid = scores.shape[1:]
    q_inverse, k_inverse = (
        inverse_length(squared.flatten(1)).unflatten(1, grid) for squared in (q_squared, k_squared)
    )  # (B, H, W)
    cosines = scores * k_inverse * q_inverse[:, position[0], position[1], None, None]
    return _normalise(1 + cosines)


def _weights(layer: AttentionBlock, scores: Tensor) -> Tensor:
    """Weights of the other similarities from products of a query with all keys, (B, H, W)."""
    if layer.similarity == "dot":
        return scores / scores[0].numel()
    if layer.similarity == "linear":
        return _normalise(1 + layer.scale * scores)
    return torch.softmax(layer.scale * scores.flatten(1), 1).view_as(scores)


def _normalise(weights: Tensor) -> Tensor:
    total = weights.sum((1, 2), keepdim=True)
    return weights / guard_denominator(total, weights[0].numel())
