"""Adding the output of the linear similarities to the map, in one pass over it.

Legend: B batch, C channels, H x W grid, N = H*W positions, K' coefficients (see ``Grid``),
J columns of all terms together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fsanet.attention.linear_forms import Term
from fsanet.attention.spectrum import Grid
from fsanet.dct import add_in_parts, add_product, channels_last, in_parts

__all__ = ["add_terms"]


def add_terms(
    residual: Tensor, terms: Sequence[Term], grid: Grid, constant: Tensor | None
) -> Tensor:
    """``residual`` + the sum of the terms' maps + ``constant``, as one product.

    ``left (B, C, J) @ right (B, J, N)``. The separable way, term by term on parts of the map that
    stay in cache, needs a seventh of the FLOPs and takes as long (1 term) or longer (4 terms):
    thin products and four element-wise passes a term, against one product of full width.

    Args:
        residual: ``(B, C, H, W)``; the result has its dtype and memory layout.
        terms: one a round.
        grid: what their coefficients belong to.
        constant: ``(C,)``, added at every position, or None.
    """
    batch, channels, height, width = residual.shape
    positions = height * width
    basis = (grid.rows[:, None, :, None] * grid.columns[:, None, :]).flatten(0, 1)  # (K, H, W)
    if grid.extended:
        basis = torch.cat([basis, basis.new_full((1, height, width), positions**-0.5)])
    lefts, rights = [], []
    for term in terms:
        lefts.append(term.a)
        rights.append((basis * term.first[:, None]).flatten(2))  # (B, K', N)
        if term.b is not None and term.second is not None:
            lefts.append(term.b[:, None])
            rights.append(term.second.flatten(1)[:, None])  # (B, 1, N)
    if constant is not None:
        lefts.append(constant.expand(batch, 1, channels))
        rights.append(rights[0].new_ones(1, 1, positions).expand(batch, 1, positions))
    left, right = torch.cat(lefts, 1), torch.cat(rights, 1)  # (B, J, C), (B, J, N)
    if residual.dtype != left.dtype and in_parts(residual):
        size = (height, width)
        return add_in_parts(residual, lambda part: (left[:, :, part].mT @ right).unflatten(2, size))
    if channels_last(residual):
        lines = residual.permute(0, 2, 3, 1).reshape(batch, positions, channels)
        y = add_product(lines, right.mT, left)
        return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    y = add_product(residual.reshape(batch, channels, positions), left.mT, right)
    return y.reshape(batch, channels, height, width)
