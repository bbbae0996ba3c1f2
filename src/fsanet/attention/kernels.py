"""The transforms of dct.py on whole feature maps, fast: one function per route, one rule.

Every operation reads the map once and writes it at most once. :func:`choose_route` says which
function does it. With ``inplace``, what is added to a map is written into it: a fresh map as large
as the processor's cache costs more to allocate, page by page, than to compute.

Legend: B batch, C channels, H x W grid, kh x kw kept frequencies, J products added at a position.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor

from fsanet.attention.dct import full_precision, is_eager, is_transformed

__all__ = ["add_row_products", "analyse", "analyse_with_residual", "choose_route", "synthesise"]

Route = Literal["triton", "compiled", "channels_last", "channel_groups", "planes"]

MOST_IN_TRITON = 1024  # coefficients per channel: each program holds those of 16 channels
MOST_UNROLLED = 18  # products that compiled code adds one by one: 16 frequencies and constants
FEWEST_GROUPED = 16  # channels
PART_BYTES = 2**20  # of a map, for each thread: what the caches hold from one step to the next
FEWEST_LINES = 16  # of a part, for each of which a product reads its right factor again


def choose_route(
    x: Tensor, dtype: torch.dtype, *, products: int | None = None, frequencies: int | None = None
) -> Route:
    """The rule by which every operation of this file picks its function.

    * "triton": the kernels of triton_kernels.py, on a CUDA device, if ``FSANET_TRITON=1`` is set.
    * "compiled": element-wise sums, which torch.compile fuses into one loop over the map.
    * "channel_groups": eager half precision, an eighth of the channels at a time in float32, so
      that this copy never exists as a whole. A compiler fuses the change of dtype by itself.
    * "channels_last": one matrix for all channels of a row of the map.
    * "planes": one matrix per channel (:func:`add_row_products`: per row).

    Args:
        x: ``(B, C, H, W)``.
        dtype: of the computation.
        products: J, for an operation that adds J products to each value of the map.
        frequencies: K, for a transform.
    """
    compiling, exporting = torch.compiler.is_compiling(), torch.compiler.is_exporting()
    if frequencies is not None and not compiling and _takes_triton(x, dtype, frequencies):
        return "triton"
    if products is not None and products <= MOST_UNROLLED and compiling and not exporting:
        return "compiled"
    if x.dtype != dtype and x.shape[1] >= FEWEST_GROUPED and not compiling:
        return "channel_groups"
    if not exporting and _is_channels_last(x):  # at export, asking for strides would fix the sizes
        return "channels_last"
    return "planes"


def _takes_triton(x: Tensor, dtype: torch.dtype, frequencies: int) -> bool:
    wanted = x.is_cuda and os.environ.get("FSANET_TRITON") == "1"
    return (
        wanted
        and dtype == torch.float32
        and frequencies <= MOST_IN_TRITON
        and x.numel() > 0
        and not is_transformed(x)
    )


def _is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` (B, C, H, W) is stored with the channel innermost and fits no other layout."""
    if x.is_contiguous() or (not torch.compiler.is_compiling() and is_transformed(x)):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


# -- analysis


def analyse(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Coefficients of the kept band: ``rows @ x @ columns.T`` for each channel.

    The product along H comes first, which keeps long strides out of the inner loop.

    Args:
        x: ``(B, C, H, W)``, any float dtype.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.

    Returns:
        ``(B, C, kh, kw)`` in the dtype of the bases.
    """
    route = choose_route(x, rows.dtype, frequencies=rows.shape[0] * columns.shape[0])
    if route == "triton":
        from fsanet.attention import triton_kernels  # only here: Triton comes with CUDA alone

        return triton_kernels.analyse(x, rows, columns)
    if route == "channel_groups":
        return _analyse_channel_groups(x, rows, columns)
    if route == "channels_last":
        return _analyse_channels_last(x.to(rows.dtype), rows, columns)
    return _analyse_planes(x.to(rows.dtype), rows, columns)


def _analyse_planes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    (batch, channels, height, width), kh, kw = x.shape, rows.shape[0], columns.shape[0]
    planes = x.reshape(batch * channels, height, width)
    t = torch.bmm(rows.expand(batch * channels, kh, height), planes)  # (B*C, kh, W)
    c = t.reshape(batch * channels * kh, width) @ columns.T  # (B*C*kh, kw)
    return c.reshape(batch, channels, kh, kw)


def _analyse_channels_last(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    (batch, channels, height, width), kh, kw = x.shape, rows.shape[0], columns.shape[0]
    lines = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    t = torch.bmm(rows.expand(batch, kh, height), lines)  # (B, kh, W*C)
    t = t.reshape(batch * kh, width, channels)
    c = torch.bmm(columns.expand(batch * kh, kw, width), t)  # (B*kh, kw, C)
    return c.reshape(batch, kh, kw, channels).permute(0, 3, 1, 2)  # (B, C, kh, kw)


def _analyse_channel_groups(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    run = _analyse_channels_last if _is_channels_last(x) else _analyse_planes
    groups = _channel_groups(x)
    return torch.cat([run(group.to(rows.dtype), rows, columns) for group in groups], 1)


def analyse_with_residual(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` for the residual path, and its coefficients.

    The gradient of ``x`` is the sum of what comes back on both paths. Autograd would synthesise
    one into a map of its own and then add the other: two maps written where one is enough.

    Args:
        x: ``(B, C, H, W)``.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``; neither basis gets a gradient.

    Returns:
        ``x``, and ``(B, C, kh, kw)`` in the dtype of the bases.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return _AnalyseWithResidual.apply(x, rows, columns)
    return x, analyse(x, rows, columns)


class _AnalyseWithResidual(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), analyse(x, rows, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: object) -> None:
        _, rows, columns = inputs
        ctx.save_for_backward(rows, columns)

    @staticmethod
    def backward(
        ctx: Any, grad_residual: Tensor, grad_coefficients: Tensor
    ) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        with full_precision(grad_residual):
            grad = synthesise(grad_coefficients, rows, columns, residual=grad_residual)
        return grad, None, None


# -- synthesis


def synthesise(
    coefficients: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    residual: Tensor | None = None,
    constant: Tensor | None = None,
    inplace: bool = False,
) -> Tensor:
    """The map ``rows.T @ c @ columns`` of coefficients c, added to ``residual`` in one pass.

    Args:
        coefficients: ``(B, C, kh, kw)`` in the dtype of the bases.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.
        residual: ``(B, C, H, W)`` to add to; the result has its dtype and memory layout.
        constant: ``(B, C)``, one value per image and channel, added at every position.
        inplace: overwrite ``residual`` with the result; not with autograd.

    Returns:
        ``(B, C, H, W)``.
    """
    if residual is None:
        return _synthesise_planes(coefficients, rows, columns, None, constant, False)
    products = rows.shape[0] + int(constant is not None)  # see Basis.size
    frequencies = rows.shape[0] * columns.shape[0]
    route = choose_route(residual, coefficients.dtype, products=products, frequencies=frequencies)
    if route == "triton":
        from fsanet.attention import triton_kernels

        return triton_kernels.synthesise(
            coefficients, rows, columns, residual=residual, constant=constant, inplace=inplace
        )
    given = coefficients, rows, columns, residual, constant
    directly = inplace and _writes_into(residual, route)
    if route == "compiled":
        y = _synthesise_compiled(*given)
    elif route == "channels_last":
        y = _synthesise_channels_last(*given, directly)
    elif route == "channel_groups":
        y = _synthesise_channel_groups(*given, directly)
    else:
        y = _synthesise_planes(*given, directly)
    return residual.copy_(y) if inplace and not directly else y


def _synthesise_planes(
    c: Tensor,
    rows: Tensor,
    columns: Tensor,
    residual: Tensor | None,
    constant: Tensor | None,
    inplace: bool,
) -> Tensor:
    (batch, channels, kh, _), (height, width) = c.shape, (rows.shape[1], columns.shape[1])
    t = _along_columns(c, columns).reshape(batch * channels, kh, width)
    if constant is not None:  # the constant is one more row function, the map of ones
        line = constant.reshape(batch * channels, 1, 1).expand(batch * channels, 1, width)
        t = torch.cat([t, line], 1)  # (B*C, kh + 1, W)
        rows = torch.cat([rows, rows.new_ones(1, height)])  # (kh + 1, H)
    left = rows.T.expand(batch * channels, height, rows.shape[0])
    if residual is None:
        y = torch.bmm(left, t)  # (B*C, H, W)
    else:
        planes = residual.reshape(batch * channels, height, width)
        y = _add_product(planes, left, t, inplace)
    return y.reshape(batch, channels, height, width)


def _synthesise_channels_last(
    c: Tensor,
    rows: Tensor,
    columns: Tensor,
    residual: Tensor,
    constant: Tensor | None,
    inplace: bool,
) -> Tensor:
    (batch, channels, height, width), kh = residual.shape, rows.shape[0]
    t = _along_columns_channels_last(c, columns).reshape(batch, kh, width * channels)
    if constant is not None:  # the constant is one more row function, the map of ones
        line = constant.unsqueeze(1).expand(batch, width, channels)
        t = torch.cat([t, line.reshape(batch, 1, width * channels)], 1)  # (B, kh + 1, W*C)
        rows = torch.cat([rows, rows.new_ones(1, height)])  # (kh + 1, H)
    lines = residual.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    left = rows.T.expand(batch, height, rows.shape[0])
    y = _add_product(lines, left, t, inplace)  # (B, H, W*C)
    return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)


def _synthesise_channel_groups(
    c: Tensor,
    rows: Tensor,
    columns: Tensor,
    residual: Tensor,
    constant: Tensor | None,
    inplace: bool,
) -> Tensor:
    directly = _writes_into_copies(residual, inplace)
    run = _synthesise_channels_last if _is_channels_last(residual) else _synthesise_planes
    shifts = repeat(None) if constant is None else _channel_groups(constant)
    parts = zip(_channel_groups(residual), _channel_groups(c), shifts, strict=False)
    sums = (
        run(one, rows, columns, part.to(c.dtype, copy=True), shift, directly)
        for part, one, shift in parts
    )
    return _join_channel_groups(sums, residual, inplace)


def _synthesise_compiled(
    c: Tensor, rows: Tensor, columns: Tensor, residual: Tensor, constant: Tensor | None
) -> Tensor:
    if _is_channels_last(residual):
        t = _along_columns_channels_last(c, columns).permute(0, 3, 1, 2)
    else:
        t = _along_columns(c, columns)
    y = residual.to(c.dtype)
    for u in range(rows.shape[0]):
        y = y + rows[u, :, None] * t[:, :, u, None]  # (B, C, H, W)
    if constant is not None:
        y = y + constant[:, :, None, None]
    return y.to(residual.dtype)


def _along_columns(c: Tensor, columns: Tensor) -> Tensor:
    """``c @ columns``: ``(B, C, kh, kw)`` to ``(B, C, kh, W)``, contiguous."""
    batch, channels, kh, kw = c.shape
    t = c.contiguous().reshape(batch * channels * kh, kw) @ columns  # one product, no strides
    return t.reshape(batch, channels, kh, columns.shape[1])


def _along_columns_channels_last(c: Tensor, columns: Tensor) -> Tensor:
    """``c @ columns``, channel last: ``(B, C, kh, kw)`` to ``(B, kh, W, C)``, contiguous."""
    (batch, channels, kh, kw), width = c.shape, columns.shape[1]
    c = c.permute(0, 2, 3, 1).reshape(batch * kh, kw, channels)
    t = torch.bmm(columns.T.expand(batch * kh, width, kw), c)  # (B*kh, W, C)
    return t.reshape(batch, kh, width, channels)


# -- one product per row of the grid


def add_row_products(
    residual: Tensor, left: Tensor, right: Tensor, *, inplace: bool = False
) -> Tensor:
    """``residual + left^T @ right`` in each row of the grid, rounded once to the residual's dtype.

    Args:
        residual: ``(B, C, H, W)``; the result has its dtype and memory layout.
        left: ``(B, H, J, C)``.
        right: ``(B, H, J, W)``.
        inplace: overwrite ``residual`` with the result; not with autograd.

    Returns:
        ``(B, C, H, W)``.
    """
    route = choose_route(residual, left.dtype, products=left.shape[2])
    directly = inplace and _writes_into(residual, route)
    if route == "compiled":
        y = _add_row_products_compiled(residual, left, right)
    elif route == "channels_last":
        y = _add_row_products_channels_last(residual, left, right, directly)
    elif route == "channel_groups":
        y = _add_row_products_channel_groups(residual, left, right, directly)
    else:
        y = _add_row_products_planes(residual, left, right, directly)
    return residual.copy_(y) if inplace and not directly else y


def _add_row_products_planes(
    residual: Tensor, left: Tensor, right: Tensor, inplace: bool
) -> Tensor:
    if not is_eager(residual) or residual.dtype != left.dtype or residual.shape[0] == 0:
        products = _row_products(left, right)
        return residual.add_(products) if inplace else (residual + products).to(residual.dtype)
    if inplace:
        return _add_to_rows(residual, left, right)
    return _AddRowProducts.apply(residual, left, right)


def _add_to_rows(y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """In place: the channels of a row have a fixed stride, which BLAS can write to."""
    for image, image_left, image_right in zip(y, left, right, strict=True):
        rows = image.transpose(0, 1)  # (H, C, W)
        torch.baddbmm(rows, image_left.mT, image_right, out=rows)
    return y


class _AddRowProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return _add_to_rows(residual.clone(memory_format=torch.contiguous_format), left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right = ctx.saved_tensors
        rows = [image.transpose(0, 1) for image in grad.contiguous()]  # (H, C, W) each
        grad_left = [r @ g.mT for r, g in zip(right, rows, strict=True)]  # (H, J, C)
        grad_right = [i @ g for i, g in zip(left, rows, strict=True)]  # (H, J, W)
        return grad, torch.stack(grad_left), torch.stack(grad_right)


def _add_row_products_channels_last(
    residual: Tensor, left: Tensor, right: Tensor, inplace: bool
) -> Tensor:
    batch, channels, height, width = residual.shape
    lines = residual.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
    y = _add_product(lines, right.flatten(0, 1).mT, left.flatten(0, 1), inplace)  # (B*H, W, C)
    return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)


def _add_row_products_channel_groups(
    residual: Tensor, left: Tensor, right: Tensor, inplace: bool
) -> Tensor:
    parts = zip(_channel_groups(residual), _channel_groups(left, -1), strict=True)
    if not _is_channels_last(residual):
        # In two steps: a row of one group is too little for a product that adds to it.
        sums = (part + _row_products(one, right) for part, one in parts)
    else:
        directly = _writes_into_copies(residual, inplace)
        sums = (
            _add_row_products_channels_last(part.to(left.dtype, copy=True), one, right, directly)
            for part, one in parts
        )
    return _join_channel_groups(sums, residual, inplace)


def _add_row_products_compiled(residual: Tensor, left: Tensor, right: Tensor) -> Tensor:
    y = residual.to(left.dtype)
    for j in range(left.shape[2]):
        y = y + left[:, :, j].mT[..., None] * right[:, None, :, j]  # (B, C, H, W)
    return y.to(residual.dtype)


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """``(B, H, J, C)`` and ``(B, H, J, W)`` to ``(B, C, H, W)``."""
    return (left.mT @ right).transpose(1, 2)


def _add_product(residual: Tensor, left: Tensor, right: Tensor, inplace: bool) -> Tensor:
    """``residual + left @ right``, batched, rounded once to the residual's dtype.

    Args:
        residual: ``(P, M, N)``.
        left: ``(P, M, J)``.
        right: ``(P, J, N)``.
        inplace: overwrite ``residual`` with the result; not with autograd.
    """
    if residual.dtype != left.dtype:
        product = torch.bmm(left, right)
        return residual.add_(product) if inplace else (residual + product).to(residual.dtype)
    part_bytes = _part_bytes(residual)
    if part_bytes is None:  # not baddbmm_, whose FLOPs torch does not count
        return torch.baddbmm(residual, left, right, out=residual if inplace else None)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (residual, left, right)):
        return torch.bmm(left, right).add_(residual)
    # A product that is added to a large map can take longer than a product and a sum, which finds
    # the product in the caches (benchmarks/native_kernels.py).
    y = residual if inplace else torch.empty_like(residual)
    buffer = None  # one for all parts: fresh memory costs more than the product
    for part in _parts(y, part_bytes):
        sums = y[part]
        if inplace and buffer is None:
            buffer = sums.new_empty(sums.numel())
        product = sums if buffer is None else buffer[: sums.numel()].view(sums.shape)
        torch.bmm(left[part], right[part[0]], out=product)
        torch.add(residual[part], product, out=sums)
    return y


def _part_bytes(residual: Tensor) -> int | None:
    """Size of the parts in which a product is added to a map; None: at once."""
    if not is_eager(residual) or residual.device.type != "cpu" or _adds_products_fast():
        return None
    part_bytes = PART_BYTES * torch.get_num_threads()
    return part_bytes if residual.nbytes >= 8 * part_bytes else None


@functools.cache
def _adds_products_fast() -> bool:
    """Whether one product that adds to a large map beats a product and a sum.

    So measured with MKL on an Intel Xeon, elsewhere not (docs/performance.md).
    """
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    cpu = str(capabilities.get("cpu_name", ""))
    return torch.backends.mkl.is_available() and cpu.startswith("Intel")


def _parts(x: Tensor, nbytes: int) -> Iterator[tuple[slice, slice]]:
    """Slices of ``x`` (P, M, N) along P and M, of about so many bytes."""
    planes, lines, _ = x.shape
    most = max(nbytes // x[0, 0].nbytes, FEWEST_LINES)
    count, height = max(most // lines, 1), min(most, lines)
    for start in range(0, planes, count):
        for top in range(0, lines, height):
            yield slice(start, start + count), slice(top, top + height)


def _writes_into(residual: Tensor, route: Route) -> bool:
    """Whether a route can write its result into ``residual``."""
    if route == "channels_last":
        return residual.is_contiguous(memory_format=torch.channels_last)
    return route == "channel_groups" or (route == "planes" and residual.is_contiguous())


def _channel_groups(x: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
    """Parts of ``x`` with an eighth of the channels each, which ``dim`` counts."""
    return x.split(-(-x.shape[dim] // 8), dim)


def _writes_into_copies(residual: Tensor, inplace: bool) -> bool:
    """Whether sums go into the float32 copies of channel groups: not where something records."""
    return is_eager(residual) and (inplace or not torch.is_grad_enabled())


def _join_channel_groups(sums: Iterable[Tensor], residual: Tensor, inplace: bool) -> Tensor:
    """The groups of channels as one map like ``residual``."""
    if torch.is_grad_enabled() and not inplace:
        # Assignments to slices would copy the whole gradient for each.
        return torch.cat([part.to(residual.dtype) for part in sums], 1)
    y = residual if inplace else torch.empty_like(residual)
    for target, part in zip(_channel_groups(y), sums, strict=True):
        target.copy_(part)
        del part  # before the next one is made
    return y
