"""Orthonormal DCT-II: bases, bands of frequencies, analysis and synthesis of feature maps.

Source: FsaNet (arXiv 2211.15595), section III; the type-II transform in its orthonormal scaling.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fsanet.errors import InputError

__all__ = [
    "Band",
    "add_in_parts",
    "add_product",
    "analyse",
    "basis_dtype",
    "channels_last",
    "dct_bases",
    "dct_basis",
    "dense_basis",
    "full_precision",
    "fuses",
    "in_parts",
    "synthesise",
    "transformed",
]

MOST_UNROLLED = 18  # addends a compiled synthesis adds one by one: 16 frequencies and constants


class Band(NamedTuple):
    """A rectangle of the frequency plane, half-open on both axes: ``[h0:h1) x [w0:w1)``.

    ``None`` as a stop means "to the highest frequency of whatever map comes".

    >>> Band.of(8)
    Band(h0=0, h1=8, w0=0, w1=8)
    >>> Band.of((4, 6))
    Band(h0=0, h1=4, w0=0, w1=6)
    >>> Band.of(((2, 8), (0, None)))
    Band(h0=2, h1=8, w0=0, w1=None)
    >>> Band.of(8).clip(5, 97)
    Band(h0=0, h1=5, w0=0, w1=8)
    """

    h0: int
    h1: int | None
    w0: int
    w1: int | None

    @classmethod
    def of(cls, k: BandLike) -> Band:
        """Read a band from what users write.

        Args:
            k: ``int`` (the lowest k x k), ``(kh, kw)`` (the lowest kh x kw), two ranges
                ``((h0, h1), (w0, w1))`` given as pairs or ``range`` objects, or ``None`` for the
                whole plane.

        Raises:
            InputError: for a count below 1, an empty or negative range, or another shape.
        """
        if isinstance(k, cls):
            return k
        if k is None:
            return cls(0, None, 0, None)
        both = (k, k) if isinstance(k, int) and not isinstance(k, bool) else k
        sides = tuple(both) if isinstance(both, Sequence) and not isinstance(both, str) else ()
        if len(sides) != 2:
            raise InputError(
                f"k={k!r} is not a band: give an int, a pair (kh, kw), two ranges "
                "((h0, h1), (w0, w1)), or None for all frequencies"
            )
        rows, columns = (
            _axis_range(side, k, axis) for side, axis in zip(sides, ("row", "column"), strict=True)
        )
        return cls(*rows, *columns)

    def clip(self, height: int, width: int) -> Band:
        """The part of the band that an ``height x width`` map has.

        Raises:
            InputError: if the map has none of the band's frequencies.
        """
        h1 = height if self.h1 is None else min(self.h1, height)
        w1 = width if self.w1 is None else min(self.w1, width)
        if self.h0 >= h1 or self.w0 >= w1:
            raise InputError(
                f"band {self} lies outside the frequencies of the {height}x{width} feature map; "
                f"start it below row {height} and column {width}"
            )
        return Band(self.h0, h1, self.w0, w1)

    @property
    def has_dc(self) -> bool:
        """Whether the band holds the constant (frequency 0, 0)."""
        return self.h0 == 0 and self.w0 == 0

    def __str__(self) -> str:
        rows = f"{self.h0}:{'' if self.h1 is None else self.h1}"
        columns = f"{self.w0}:{'' if self.w1 is None else self.w1}"
        return f"[{rows}) x [{columns})"


BandLike = int | Sequence[int] | Sequence[Sequence[int | None]] | Band | None


def _axis_range(side: object, k: object, axis: str) -> tuple[int, int | None]:
    if isinstance(side, int) and not isinstance(side, bool):
        if side < 1:
            raise InputError(f"k={k!r}: at least 1 {axis} frequency has to be kept, got {side}")
        return 0, side
    if isinstance(side, range) and side.step == 1:
        side = (side.start, side.stop)
    if isinstance(side, Sequence) and len(side) == 2:
        start, stop = side
        if type(start) is int and (stop is None or type(stop) is int):
            if start < 0 or (stop is not None and stop <= start):
                raise InputError(
                    f"k={k!r}: the {axis} range {start}:{stop} is empty or negative; "
                    "give start >= 0 and stop > start"
                )
            return start, stop
    raise InputError(f"k={k!r}: {side!r} is neither a count nor a range of {axis} frequencies")


def basis_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a map of ``dtype`` is transformed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def dct_basis(
    size: int, start: int, stop: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Rows ``start:stop`` of the orthonormal DCT-II matrix of an axis with ``size`` positions.

    ``D[u, i] = s(u) cos(pi u (2i + 1) / (2 size))``, ``s(0) = sqrt(1/size)``,
    ``s(u > 0) = sqrt(2/size)``, so that ``D @ D.T = I``.

    Returns:
        ``(stop - start, size)``, of ``dtype`` on ``device``.

    >>> D = dct_basis(6, 0, 6, dtype=torch.float64, device=torch.device("cpu"))
    >>> torch.allclose(D @ D.T, torch.eye(6, dtype=torch.float64))
    True
    """
    u = torch.arange(start, stop, device=device).unsqueeze(1)  # (m, 1)
    i = torch.arange(size, device=device)  # (size,)
    # One period is 4*size steps: the integer remainder keeps the angle exact for any size.
    period = torch.full((), 4 * size, dtype=i.dtype, device=device)  # ONNX takes no symbol here
    phase = (u * (2 * i + 1)) % period  # (m, size)
    wide = torch.float32 if device.type == "mps" else torch.float64
    cosine = torch.cos(phase.to(wide) * (math.pi / 2) / size)
    scale = torch.sqrt(torch.where(u == 0, 1.0, 2.0).to(wide) / size)
    return (cosine * scale).to(dtype)


@lru_cache(maxsize=256)
def _cached_basis(
    size: int, start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # A tensor born in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return dct_basis(size, start, stop, dtype=dtype, device=device)


def dct_bases(x: Tensor, band: Band) -> tuple[Tensor, Tensor]:
    """The bases of both axes for a map ``x`` and a band already clipped to it.

    Cached by (size, band, dtype, device), except while a graph is captured or a transform is
    active, where they are part of the graph and follow its sizes.

    Args:
        x: ``(..., H, W)``.
        band: from :meth:`Band.clip`.

    Returns:
        ``(kh, H)`` and ``(kw, W)``, in :func:`basis_dtype` of ``x`` and on its device.
    """
    height, width = x.shape[-2:]
    dtype = basis_dtype(x.dtype)
    plain = type(x) in (Tensor, torch.nn.Parameter) and type(height) is type(width) is int
    if plain and not torch.compiler.is_compiling() and not transformed(x):
        return (
            _cached_basis(height, band.h0, band.h1, dtype, x.device),  # type: ignore[arg-type]
            _cached_basis(width, band.w0, band.w1, dtype, x.device),  # type: ignore[arg-type]
        )
    return (
        dct_basis(height, band.h0, band.h1, dtype=dtype, device=x.device),  # type: ignore[arg-type]
        dct_basis(width, band.w0, band.w1, dtype=dtype, device=x.device),  # type: ignore[arg-type]
    )


def transformed(x: Tensor) -> bool:
    """Whether ``x`` belongs to a torch.func transform, whose tensors must not outlive it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def dense_basis(rows: Tensor, columns: Tensor) -> Tensor:
    """The matrix P: ``P[(i, j), (u, v)] = rows[u, i] * columns[v, j]``.

    Args:
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.

    Returns:
        ``(H*W, kh*kw)``; its columns are orthonormal.
    """
    (kh, height), (kw, width) = rows.shape, columns.shape
    grid = rows.T.reshape(height, 1, kh, 1) * columns.T.reshape(1, width, 1, kw)  # (H, W, kh, kw)
    return grid.reshape(height * width, kh * kw)


def channels_last(x: Tensor) -> bool:
    """Whether ``x`` (B, C, H, W) is stored with the channel innermost, and only so."""
    if torch.compiler.is_exporting():  # a stride question would pin the dynamic sizes
        return False
    if x.is_contiguous() or (not torch.compiler.is_compiling() and transformed(x)):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def analyse(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Coefficients of the kept band: ``rows @ x @ columns.T`` for each channel.

    The map is read once, along H first (the long strides stay out of the inner loop), in its own
    memory layout.

    Args:
        x: ``(B, C, H, W)``, any float dtype.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.

    Returns:
        ``(B, C, kh, kw)`` in the dtype of the bases.
    """
    batch, channels, height, width = x.shape
    kh, kw = rows.shape[0], columns.shape[0]
    if x.dtype != rows.dtype:
        if in_parts(x):  # the wider copy never exists as a whole
            parts = [analyse(x[:, part].to(rows.dtype), rows, columns) for part in _parts(channels)]
            return torch.cat(parts, 1)
        x = x.to(rows.dtype)
    if channels_last(x):
        lines = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        t = torch.bmm(rows.expand(batch, kh, height), lines)  # (B, kh, W*C)
        t = t.reshape(batch * kh, width, channels)
        c = torch.bmm(columns.expand(batch * kh, kw, width), t)  # (B*kh, kw, C)
        return c.reshape(batch, kh, kw, channels).permute(0, 3, 1, 2)  # (B, C, kh, kw)
    planes = x.reshape(batch * channels, height, width)
    t = torch.bmm(rows.expand(batch * channels, kh, height), planes)  # (B*C, kh, W)
    c = t.reshape(batch * channels * kh, width) @ columns.T
    return c.reshape(batch, channels, kh, kw)


def synthesise(
    coefficients: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    residual: Tensor | None = None,
    constant: Tensor | None = None,
) -> Tensor:
    """The map of band coefficients: ``rows.T @ c @ columns``, added to ``residual`` in one pass.

    Args:
        coefficients: ``(B, C, kh, kw)`` in the dtype of the bases.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.
        residual: ``(B, C, H, W)`` to add to; the result has its dtype and memory layout.
        constant: ``(B, C)``, one value per image and channel to add at every position.

    Returns:
        ``(B, C, H, W)``.
    """
    batch, channels, kh, kw = coefficients.shape
    height, width = rows.shape[1], columns.shape[1]
    if residual is not None and residual.dtype != coefficients.dtype and in_parts(residual):
        return add_in_parts(
            residual,
            lambda part: synthesise(
                coefficients[:, part],
                rows,
                columns,
                constant=None if constant is None else constant[:, part],
            ),
        )
    if residual is not None and channels_last(residual):
        c = coefficients.permute(0, 2, 3, 1).reshape(batch * kh, kw, channels)
        t = torch.bmm(columns.T.expand(batch * kh, width, kw), c)  # (B*kh, W, C)
        t = t.reshape(batch, kh, width * channels)
        if constant is not None:
            line = constant.unsqueeze(1).expand(batch, width, channels)
            t = torch.cat([t, line.reshape(batch, 1, width * channels)], 1)
            rows = torch.cat([rows, rows.new_ones(1, height)])
        lines = residual.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        y = _add_rows(lines, rows, t).reshape(batch, height, width, channels)
        return y.permute(0, 3, 1, 2)  # (B, C, H, W), channel innermost
    lines = coefficients.contiguous().reshape(batch * channels * kh, kw)  # one product, no strides
    t = (lines @ columns).reshape(batch * channels, kh, width)
    if constant is not None:  # one more row frequency: the map of ones
        line = constant.reshape(batch * channels, 1, 1).expand(batch * channels, 1, width)
        t = torch.cat([t, line], 1)
        rows = torch.cat([rows, rows.new_ones(1, height)])
    planes = None if residual is None else residual.reshape(batch * channels, height, width)
    return _add_rows(planes, rows, t).reshape(batch, channels, height, width)


def _add_rows(residual: Tensor | None, rows: Tensor, t: Tensor) -> Tensor:
    """``residual (n, H, L) + rows.T @ t``, for rows (kh, H) and t (n, kh, L)."""
    kh, height = rows.shape
    if residual is None or not fuses() or kh > MOST_UNROLLED:
        return add_product(residual, rows.T.expand(t.shape[0], height, kh), t)
    y = residual.to(t.dtype)
    for u in range(kh):  # no product that a compiler calls as a whole: one loop over the map
        y = y + rows[u, :, None] * t[:, u, None]
    return y.to(residual.dtype)


def fuses() -> bool:
    """Whether a compiler is at work that makes one loop of element-wise steps."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def add_product(residual: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``residual + left @ right``, batched, rounded once to the residual's dtype."""
    if residual is None:
        return torch.bmm(left, right)
    if residual.dtype == left.dtype:
        return torch.baddbmm(residual, left, right)
    return (residual + torch.bmm(left, right)).to(residual.dtype)


def in_parts(x: Tensor) -> bool:
    """Whether a half-precision map is worked on some channels at a time.

    A compiler fuses the change of dtype by itself, and channels that lie innermost do not part.
    """
    return x.shape[1] >= 16 and not torch.compiler.is_compiling() and not channels_last(x)


def add_in_parts(residual: Tensor, product: Callable[[slice], Tensor]) -> Tensor:
    """``residual + product(all channels)``, an eighth of the channels at a time, rounded once.

    Args:
        residual: ``(B, C, H, W)`` in half precision.
        product: gives ``(B, c, H, W)`` in float32 for a slice of c channels.
    """
    y = torch.empty_like(residual)
    for part in _parts(residual.shape[1]):
        y[:, part] = residual[:, part] + product(part)
    return y


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """No autocast around coefficients: their products are few, their rounding is not small."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _parts(channels: int) -> list[slice]:
    size = -(-channels // 8)
    return [slice(start, start + size) for start in range(0, channels, size)]
