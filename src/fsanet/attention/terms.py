"""Adding the output of the linear similarities to the map, in one pass over it.

A term is ``first[p] (P a)[p] + second[p] b``: a low-frequency map with a scalar a position. Along
one row of the grid that scalar is absorbed by the basis of the columns, so a row of the output is
a product with J numbers inside, J = kw + 1 a term, in place of K + 1.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw frequencies, J see above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsanet.attention.dct import (
    MOST_UNROLLED,
    add_in_parts,
    add_product,
    channels_last,
    fuses,
    in_parts,
    transformed,
)
from fsanet.attention.linear import Term
from fsanet.attention.spectrum import Grid

__all__ = ["add_rows", "add_terms", "factors"]


def add_terms(
    residual: Tensor, terms: Sequence[Term], grid: Grid, constant: Tensor | None
) -> Tensor:
    """``residual`` + the sum of the terms' maps + ``constant``.

    Args:
        residual: ``(B, C, H, W)``; the result has its dtype and memory layout.
        terms: one a round.
        grid: what their coefficients belong to.
        constant: ``(C,)``, added at every position, or None.
    """
    return add_rows(residual, *factors(terms, grid, constant))


def factors(terms: Sequence[Term], grid: Grid, constant: Tensor | None) -> tuple[Tensor, Tensor]:
    """``left (B, H, J, C)`` and ``right (B, H, J, W)``, whose product is the sum."""
    (kh, height), (kw, width) = grid.rows.shape, grid.columns.shape
    batch, _, channels = terms[0].a.shape
    lefts, rights = [], []

    def add(left: Tensor, right: Tensor) -> None:
        """One number a channel (B, C), one a position (B, H, W)."""
        lefts.append(left[:, None, None].expand(batch, height, 1, channels))
        rights.append(right[:, :, None])

    for term in terms:
        band = term.a[:, : kh * kw].reshape(batch, kh, kw * channels)
        lefts.append((grid.rows.T @ band).unflatten(2, (kw, channels)))  # (B, H, kw, C)
        rights.append(term.first[:, :, None] * grid.columns)  # (B, H, kw, W)
        if grid.extended:
            add(term.a[:, -1] / grid.positions**0.5, term.first)
        if term.b is not None and term.second is not None:
            add(term.b, term.second)
    if constant is not None:
        ones = rights[0].new_ones(1, 1, 1).expand(batch, height, width)
        add(constant.expand(batch, channels), ones)
    return torch.cat(lefts, 2), torch.cat(rights, 2)


def add_rows(residual: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``residual + left^T @ right``, row by row of the grid, rounded once to the residual's dtype.

    Args:
        residual: ``(B, C, H, W)``.
        left: ``(B, H, J, C)``.
        right: ``(B, H, J, W)``.
    """
    batch, channels, height, width = residual.shape
    if fuses() and left.shape[2] <= MOST_UNROLLED:
        y = residual.to(left.dtype)
        for j in range(left.shape[2]):  # one loop over the map, made by the compiler
            y = y + left[:, :, j].mT[..., None] * right[:, None, :, j]
        return y.to(residual.dtype)
    if channels_last(residual):
        lines = residual.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        y = add_product(lines, right.flatten(0, 1).mT, left.flatten(0, 1))
        return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    if residual.dtype != left.dtype and in_parts(residual):
        return add_in_parts(residual, lambda part: _product(left[..., part], right))
    if residual.dtype != left.dtype or not _in_place(residual):
        return (residual + _product(left, right)).to(residual.dtype)
    return _AddRows.apply(residual, left, right)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``(B, H, J, c), (B, H, J, W)`` to ``(B, c, H, W)``."""
    return (left.mT @ right).transpose(1, 2)


def _in_place(x: Tensor) -> bool:
    """Whether a copy of ``x`` may be added to, row by row: not in a graph, not in a transform."""
    return x.shape[0] > 0 and not torch.compiler.is_compiling() and not transformed(x)


class _AddRows(torch.autograd.Function):
    """A row of the map has a fixed stride between channels: BLAS adds to it where it lies."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        y = residual.clone(memory_format=torch.contiguous_format)
        for image, image_left, image_right in zip(y, left, right, strict=True):
            image.transpose(0, 1).baddbmm_(image_left.mT, image_right)  # (H, C, W)
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right = ctx.saved_tensors
        rows = [image.transpose(0, 1) for image in upstream.contiguous()]  # (H, C, W) each
        of_left = [r @ g.mT for r, g in zip(right, rows, strict=True)]  # (H, J, C)
        of_right = [i @ g for i, g in zip(left, rows, strict=True)]  # (H, J, W)
        return upstream, torch.stack(of_left), torch.stack(of_right)
