"""The orthonormal DCT-II as plain mathematics: bands of frequencies, bases, analysis, synthesis.

``kernels.py`` holds the same transforms of whole feature maps, written for speed.

Source: FsaNet (arXiv 2211.15595), section III; the type-II transform in its orthonormal scaling.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
K' = K, or K + 1 where the constant is one more basis function, P (N, K') the basis as one matrix.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fsanet.errors import InputError

__all__ = [
    "Band",
    "BandLike",
    "Basis",
    "analyse",
    "autocast_dtype",
    "band_to_json",
    "basis_dtype",
    "dct_bases",
    "dct_basis",
    "dense_basis",
    "full_precision",
    "is_eager",
    "is_transformed",
    "split_frequencies",
    "synthesise",
]


class Band(NamedTuple):
    """A rectangle of the frequency plane, half-open on both axes: ``[h0:h1) x [w0:w1)``.

    A stop of ``None`` is the highest frequency of the map at hand.

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
        """The band that a user's ``k`` stands for.

        Args:
            k: ``int`` (the lowest k x k), ``(kh, kw)`` (the lowest kh x kw), two ranges
                ``((h0, h1), (w0, w1))`` given as pairs or ``range`` objects, or ``None`` for the
                whole plane.

        Raises:
            InputError: for a count below 1, an empty or negative range, or any other value.
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
        """The part of the band that exists on a ``height x width`` map.

        Raises:
            InputError: the map has none of the band's frequencies.
        """
        h1 = height if self.h1 is None else min(self.h1, height)
        w1 = width if self.w1 is None else min(self.w1, width)
        if self.h0 >= h1 or self.w0 >= w1:
            raise InputError(
                f"band {self} lies outside the frequencies of the {height}x{width} feature map; "
                f"start it below row {height} and column {width}"
            )
        return Band(self.h0, h1, self.w0, w1)

    def covers(self, height: int, width: int) -> bool:
        """Whether the band holds all frequencies of a ``height x width`` map.

        >>> Band.of(8).covers(7, 8), Band.of(8).covers(8, 9)
        (True, False)
        """
        return self.contains(Band(0, height, 0, width))

    def contains(self, other: Band) -> bool:
        """Whether every frequency of another band is one of this band.

        >>> Band.of(8).contains(Band.of(((2, 8), (0, 3)))), Band.of(8).contains(Band.of(None))
        (True, False)
        """
        axes = ((self.h0, self.h1, other.h0, other.h1), (self.w0, self.w1, other.w0, other.w1))
        return all(
            start <= other_start
            and (stop is None or (other_stop is not None and other_stop <= stop))
            for start, stop, other_start, other_stop in axes
        )

    @property
    def has_dc(self) -> bool:
        """Whether the band contains the constant, frequency (0, 0)."""
        return self.h0 == 0 and self.w0 == 0

    def __str__(self) -> str:
        rows = f"{self.h0}:{'' if self.h1 is None else self.h1}"
        columns = f"{self.w0}:{'' if self.w1 is None else self.w1}"
        return f"[{rows}) x [{columns})"


BandLike = int | Sequence[int] | Sequence[Sequence[int | None]] | Band | None


def band_to_json(k: BandLike) -> int | list[list[int | None]] | None:
    """Convert a band argument to plain JSON values that `Band.of` accepts.

    >>> band_to_json((4, 6))
    [[0, 4], [0, 6]]
    """
    if k is None or isinstance(k, int):
        return k
    band = Band.of(k)
    return [[band.h0, band.h1], [band.w0, band.w1]]


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


class Basis(NamedTuple):
    """The DCT functions of a band on an H x W grid, each a product of a row and a column function.

    ``rows`` (kh, H) and ``columns`` (kw, W) are orthonormal. ``has_dc`` says whether frequency
    (0, 0) is in the band; it is then the first. In an ``extended`` basis the constant
    ``1 / sqrt(N)`` is one more function, the last: it makes constants exact in a band without DC.
    """

    rows: Tensor
    columns: Tensor
    has_dc: bool
    extended: bool = False

    @classmethod
    def of(cls, x: Tensor, band: Band) -> Basis:
        """The basis for a map ``x`` (..., H, W) and a band already clipped to it."""
        return cls(*dct_bases(x, band), band.has_dc)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rows.shape[1], self.columns.shape[1]

    @property
    def positions(self) -> int:
        """N."""
        return self.rows.shape[1] * self.columns.shape[1]

    @property
    def frequencies(self) -> int:
        """K."""
        return self.rows.shape[0] * self.columns.shape[0]

    @property
    def size(self) -> int:
        """K'."""
        # Not a bool: torch 2.11 and 2.12 cannot export a symbolic size plus a bool.
        return self.frequencies + int(self.extended)

    @property
    def constant_index(self) -> int | None:
        """Index of the constant among the K' functions; None if it is none of them."""
        if self.has_dc:
            return 0
        return self.frequencies if self.extended else None

    def to_tokens(self, coefficients: Tensor) -> Tensor:
        """``(B, C, kh, kw)`` as tokens ``(B, K, C)``, one per frequency."""
        return coefficients.flatten(2).mT.contiguous()

    def to_plane(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, K, C)`` as coefficients ``(B, C, kh, kw)``."""
        return tokens.mT.unflatten(2, (self.rows.shape[0], self.columns.shape[0]))

    def pad(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, K, C)`` as ``(B, K', C)``: 0 for the constant that extends the basis."""
        return pad(tokens, (0, 0, 0, 1)) if self.extended else tokens

    def constant(self, value: Tensor) -> Tensor:
        """Tokens ``(1, K', C)`` of the map that is ``value`` (C,) at every position."""
        index = self.constant_index
        if index is None:
            raise ValueError("a basis without the constant cannot represent one")
        edges = (0, 0, index, self.size - 1 - index)
        return pad(value[None, None] * self.positions**0.5, edges)


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
    scale = torch.sqrt(torch.where(u == 0, 1.0, 2.0).to(wide) / size)  # (m, 1)
    return (cosine * scale).to(dtype)


@lru_cache(maxsize=256)
def _cached_basis(
    size: int, start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # A tensor created in inference mode could not take part in a later training step.
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
    ordinary = type(x) in (Tensor, torch.nn.Parameter) and type(height) is type(width) is int
    if ordinary and is_eager(x):
        return (
            _cached_basis(height, band.h0, band.h1, dtype, x.device),  # type: ignore[arg-type]
            _cached_basis(width, band.w0, band.w1, dtype, x.device),  # type: ignore[arg-type]
        )
    return (
        dct_basis(height, band.h0, band.h1, dtype=dtype, device=x.device),  # type: ignore[arg-type]
        dct_basis(width, band.w0, band.w1, dtype=dtype, device=x.device),  # type: ignore[arg-type]
    )


def is_eager(x: Tensor) -> bool:
    """Whether operations on ``x`` run at once: no graph is captured, no transform is active."""
    return not torch.compiler.is_compiling() and not is_transformed(x)


def is_transformed(x: Tensor) -> bool:
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


def analyse(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Coefficients of the kept band, ``rows @ x @ columns.T``: (..., H, W) to (..., kh, kw)."""
    return rows @ x @ columns.T


def synthesise(coefficients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The map of coefficients, ``rows.T @ c @ columns``: (..., kh, kw) to (..., H, W)."""
    return rows.T @ coefficients @ columns


def split_frequencies(x: Tensor, cuts: Sequence[tuple[int, int]]) -> Tensor:
    """Cut a map into parts that add up to it, from low to high frequencies.

    Args:
        x: ``(..., H, W)``.
        cuts: (rows, columns), each pair at least the one before. The first part holds the lowest
            rows x columns frequencies, the next those of the second pair that the first has not,
            and so on; the last part holds the rest.

    Returns:
        ``(len(cuts) + 1, ..., H, W)``, in :func:`basis_dtype` of ``x``.

    >>> x = torch.randn(3, 8, 9, dtype=torch.float64)
    >>> parts = split_frequencies(x, [(1, 1), (4, 5)])
    >>> parts.shape, torch.allclose(parts.sum(0), x)
    (torch.Size([3, 3, 8, 9]), True)
    """
    with full_precision(x):
        x = x.to(basis_dtype(x.dtype))
        lower = [x.new_zeros(x.shape)]
        for cut in cuts:
            rows, columns = dct_bases(x, Band.of(cut).clip(*x.shape[-2:]))
            lower.append(synthesise(analyse(x, rows, columns), rows, columns))
        return torch.stack([*lower[1:], x]) - torch.stack(lower)


def basis_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a map of ``dtype`` is transformed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Context without autocast on the device of ``x``.

    Products of coefficients are small, so half precision would gain no speed there, and its
    rounding errors would spread over the whole map.
    """
    if _autocasts(x):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products at positions: autocast's where it is on, else that of ``x``."""
    return torch.get_autocast_dtype(x.device.type) if _autocasts(x) else x.dtype


def _autocasts(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
