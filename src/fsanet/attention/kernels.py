"""Analysis that keeps its input, so that the backward pass writes the gradient map once.

Legend: B batch, C channels, H x W grid, kh x kw kept frequencies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fsanet.attention.dct import analyse, full_precision, synthesise

__all__ = ["analyse_and_keep"]


def analyse_and_keep(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` for the residual path, and its coefficients.

    The gradient of ``x`` is the sum of what comes back on both paths. Autograd would synthesise
    the one into a map of its own and then add the other: two maps written, one more read.

    Args:
        x: ``(B, C, H, W)``.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``; both without gradient.

    Returns:
        ``x`` and ``(B, C, kh, kw)`` in the dtype of the bases.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return _Analysis.apply(x, rows, columns)
    return x, analyse(x, rows, columns)


class _Analysis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), analyse(x, rows, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: object) -> None:
        _, rows, columns = inputs
        ctx.save_for_backward(rows, columns)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor, of_coefficients: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        with full_precision(of_x):
            return synthesise(of_coefficients, rows, columns, residual=of_x), None, None
