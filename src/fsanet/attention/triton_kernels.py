"""Analysis and synthesis as Triton kernels for CUDA: one read of the map each, and one write.

They take both memory layouts by their strides, float32, bfloat16 and float16, and compute in
float32. No GPU was at hand to time them, so they are off unless ``FSANET_TRITON=1`` is set; their
results are tested by Triton's interpreter.

Legend: B batch, C channels, H x W grid, kh x kw kept frequencies, S groups of rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

__all__ = ["analyse", "synthesise"]

CHANNELS = 16  # of a program; tl.dot takes no fewer
COLUMNS = 64  # of the map that are loaded at a time
ROWS = 16  # of the map that a program works through


@triton.jit
def _analyse_rows(
    x, rows, columns, result, channels, height, width, batch_stride, channel_stride,
    row_stride, column_stride, KH: tl.constexpr, KW: tl.constexpr, KH2: tl.constexpr,
    KW2: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Coefficients that ROWS rows of the map contribute, for CHANNELS channels of one image."""
    image, block, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    u, v = tl.arange(0, KH2), tl.arange(0, KW2)
    start = x + image * batch_stride + c[None, :] * channel_stride
    total = tl.zeros((KH2, KW2, CHANNELS), tl.float32)
    for i in range(group * ROWS, tl.minimum((group + 1) * ROWS, height)):
        line = tl.zeros((KW2, CHANNELS), tl.float32)
        for first in range(0, width, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            inside = (j[:, None] < width) & (c[None, :] < channels)
            values = tl.load(start + i * row_stride + j[:, None] * column_stride, inside, 0.0)
            wave = (v[:, None] < KW) & (j[None, :] < width)
            basis = tl.load(columns + v[:, None] * width + j[None, :], wave, 0.0)  # (KW2, COLUMNS)
            line += tl.dot(basis, values.to(tl.float32), input_precision="ieee")
        weights = tl.load(rows + u * height + i, u < KH, 0.0)  # (KH2,)
        total += weights[:, None, None] * line[None, :, :]
    place = ((image * tl.num_programs(2) + group) * channels + c[None, None, :]) * (KH * KW)
    kept = (u[:, None, None] < KH) & (v[None, :, None] < KW) & (c[None, None, :] < channels)
    tl.store(result + place + u[:, None, None] * KW + v[None, :, None], total, kept)


@triton.jit
def _synthesise_rows(
    coefficients, rows, columns, constant, residual, y, channels, height, width, batch_stride,
    channel_stride, row_stride, column_stride, KH: tl.constexpr, KW: tl.constexpr,
    KH2: tl.constexpr, KW2: tl.constexpr, CONSTANT: tl.constexpr, RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the map, for CHANNELS channels of one image; residual and y share strides."""
    image, block, group = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    u, v = tl.arange(0, KH2), tl.arange(0, KW2)
    kept = (u[:, None, None] < KH) & (v[None, :, None] < KW) & (c[None, None, :] < channels)
    place = (image * channels + c[None, None, :]) * (KH * KW)
    waves = tl.load(
        coefficients + place + u[:, None, None] * KW + v[None, :, None], kept, 0.0
    )  # (KH2, KW2, CHANNELS)
    start = image * batch_stride + c[None, :] * channel_stride
    for i in range(group * ROWS, tl.minimum((group + 1) * ROWS, height)):
        weights = tl.load(rows + u * height + i, u < KH, 0.0)  # (KH2,)
        line = tl.sum(weights[:, None, None] * waves, 0)  # (KW2, CHANNELS)
        for first in range(0, width, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            inside = (j[:, None] < width) & (c[None, :] < channels)
            wave = (v[None, :] < KW) & (j[:, None] < width)
            basis = tl.load(columns + v[None, :] * width + j[:, None], wave, 0.0)  # (COLUMNS, KW2)
            values = tl.dot(basis, line, input_precision="ieee")  # (COLUMNS, CHANNELS)
            if CONSTANT:
                values += tl.load(constant + image * channels + c, c < channels, 0.0)[None, :]
            place = start + i * row_stride + j[:, None] * column_stride
            if RESIDUAL:
                values += tl.load(residual + place, inside, 0.0).to(tl.float32)
            tl.store(y + place, values.to(y.dtype.element_ty), inside)


def _grid(x: Tensor) -> tuple[int, int, int]:
    """Number of programs for a map (B, C, H, W): images, groups of channels, groups of rows."""
    return x.shape[0], triton.cdiv(x.shape[1], CHANNELS), triton.cdiv(x.shape[2], ROWS)


def _blocks(rows: Tensor, columns: Tensor) -> dict[str, int]:
    """Sizes that the kernels are compiled for."""
    kh, kw = rows.shape[0], columns.shape[0]
    powers = {"KH2": next_power_of_2(kh), "KW2": max(16, next_power_of_2(kw))}  # for tl.dot
    return {"KH": kh, "KW": kw, "CHANNELS": CHANNELS, "COLUMNS": COLUMNS, "ROWS": ROWS, **powers}


def _run_analysis(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    grid = _grid(x)
    shape = (x.shape[0], grid[2], x.shape[1], rows.shape[0], columns.shape[0])
    parts = rows.new_empty(shape)  # (B, S, C, kh, kw): summed apart, so in the same order each time
    _analyse_rows[grid](
        x, rows.contiguous(), columns.contiguous(), parts, *x.shape[1:], *x.stride(),
        **_blocks(rows, columns),
    )  # fmt: skip
    return parts.sum(1)


def _run_synthesis(
    coefficients: Tensor,
    rows: Tensor,
    columns: Tensor,
    residual: Tensor | None,
    constant: Tensor | None,
    inplace: bool,
) -> Tensor:
    (batch, channels), height, width = coefficients.shape[:2], rows.shape[1], columns.shape[1]
    if residual is None:
        y = coefficients.new_empty(batch, channels, height, width)
    else:
        y = residual if inplace else torch.empty_like(residual)
        if y.stride() != residual.stride():  # a map with gaps
            residual = y.copy_(residual)
    _synthesise_rows[_grid(y)](
        coefficients.contiguous(), rows.contiguous(), columns.contiguous(),
        y if constant is None else constant.contiguous(), y if residual is None else residual, y,
        *y.shape[1:], *y.stride(), CONSTANT=constant is not None, RESIDUAL=residual is not None,
        **_blocks(rows, columns),
    )  # fmt: skip
    return y


class _Analyse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.dtype = x.dtype
        return _run_analysis(x, rows, columns)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return synthesise(grad, *ctx.saved_tensors).to(ctx.dtype), None, None


class _Synthesise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        coefficients: Tensor,
        rows: Tensor,
        columns: Tensor,
        residual: Tensor | None,
        constant: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(rows, columns)
        return _run_synthesis(coefficients, rows, columns, residual, constant, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        rows, columns = ctx.saved_tensors
        return (
            analyse(grad, rows, columns) if wanted[0] else None,
            None,
            None,
            grad if wanted[3] else None,
            grad.sum((2, 3), dtype=rows.dtype) if wanted[4] else None,
        )


def analyse(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As :func:`fsanet.attention.kernels.analyse`; the bases are float32 and get no gradient."""
    return _Analyse.apply(x, rows, columns)


def synthesise(
    coefficients: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    residual: Tensor | None = None,
    constant: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """As :func:`fsanet.attention.kernels.synthesise`; the bases are float32, without gradient."""
    if inplace:
        return _run_synthesis(coefficients, rows, columns, residual, constant, True)
    return _Synthesise.apply(coefficients, rows, columns, residual, constant)
