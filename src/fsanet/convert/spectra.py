"""Token maps as low-frequency coefficients, and their evaluation at any grid of points.

Source: FsaNet (arXiv 2211.15595), section III. A band-limited map is known between its positions,
too: its cosines are evaluated there. That is how keys and values move to a coarser grid.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, r patch side,
mh x mw points, M = mh*mw.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fsanet.attention.dct import Band, dct_bases
from fsanet.attention.kernels import analyse
from fsanet.errors import InputError

__all__ = ["TokenSpectrum", "evaluate", "evaluate_patches", "patch_basis", "points_of"]


class TokenSpectrum(NamedTuple):
    """Coefficients of a token map, channels innermost, and the bases of its grid.

    ``values`` is (B, kh, kw, C); ``rows`` (kh, H) and ``columns`` (kw, W).
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    band: Band

    @classmethod
    def of(cls, tokens: Tensor, height: int, width: int, band: Band) -> TokenSpectrum:
        """Analyse ``tokens`` (B, N, C), row by row; the band is clipped to the grid.

        Raises:
            InputError: if there are not ``height * width`` tokens.
        """
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise InputError(
                f"expected tokens (B, {height * width}, C) of a {height}x{width} grid, "
                f"got {tuple(tokens.shape)}"
            )
        band = band.clip(height, width)
        plane = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, C, H, W), a view
        rows, columns = dct_bases(plane, band)
        values = analyse(plane, rows, columns)  # (B, C, kh, kw)
        return cls(values.permute(0, 2, 3, 1), rows, columns, band)

    def tokens(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A linear map of the low-passed tokens, at all positions: (B, N, c)."""
        return evaluate(project(self.values, weight), self.rows, self.columns, bias)

    def at_points(self, weight: Tensor, bias: Tensor | None, points: tuple[int, int]) -> Tensor:
        """A linear map of the low-passed tokens, at (mh, mw) evenly spread points: (B, M, c)."""
        rows, columns = self.point_bases(1, points)
        return evaluate(project(self.values, weight), rows, columns, bias)

    def point_bases(self, patch: int, points: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """`patch_basis` of both axes: (kh * r, mh) and (kw * r, mw)."""
        height, width = self.rows.shape[1], self.columns.shape[1]
        kh, kw = self.rows.shape[0], self.columns.shape[0]
        dtype, device = self.rows.dtype, self.rows.device
        h0, w0 = self.band.h0, self.band.w0
        return (
            patch_basis(height, h0, h0 + kh, patch, points[0], dtype, device),
            patch_basis(width, w0, w0 + kw, patch, points[1], dtype, device),
        )


def project(values: Tensor, weight: Tensor) -> Tensor:
    """A linear map without bias, on coefficients (B, kh, kw, C): it commutes with the transform."""
    return linear(values, weight.to(values.dtype))


def evaluate(values: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """The map of coefficients at the points of two bases, as tokens.

    Args:
        values: ``(B, kh, kw, C)``.
        rows: ``(kh, mh)``.
        columns: ``(kw, mw)``.
        bias: ``(C,)``, added at each point: a constant passes the low-pass as it is.

    Returns:
        ``(B, mh*mw, C)``, contiguous.
    """
    batch, kh, _, channels = values.shape
    mh, mw = rows.shape[1], columns.shape[1]
    t = (columns.mT @ values).reshape(batch, kh, mw * channels)  # (B, kh, mw*C)
    tokens = (rows.mT @ t).reshape(batch, mh * mw, channels)  # (B, M, C)
    return tokens if bias is None else tokens + bias.to(tokens.dtype)


def evaluate_patches(
    spectrum: TokenSpectrum, convolution: nn.Conv2d, points: tuple[int, int]
) -> Tensor:
    """A convolution of the low-passed map whose stride is its kernel's side, from coefficients.

    The r x r taps of the kernel meet the coefficients, so the map itself is never made.

    Args:
        spectrum: of the convolution's input.
        convolution: kernel r x r, stride r, no padding.
        points: (mh, mw) patches. At (H // r, W // r) the result is the convolution's own; fewer
            are patches of the same size, spread evenly between the first and the last of those.

    Returns:
        ``(B, mh*mw, C)``.
    """
    r = convolution.stride[0]
    batch, kh, kw, _ = spectrum.values.shape
    channels = convolution.out_channels
    taps = convolution.weight.permute(2, 3, 0, 1).flatten(0, 2)  # (r*r*c, C)
    t = project(spectrum.values, taps).unflatten(3, (r, r, channels))  # (B, kh, kw, r, r, c)
    t = t.permute(0, 1, 3, 2, 4, 5).reshape(batch, kh * r, kw * r, channels)
    rows, columns = spectrum.point_bases(r, points)  # (kh*r, mh), (kw*r, mw)
    return evaluate(t, rows, columns, convolution.bias)


def points_of(grid: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The m x m grid of keys, no finer than the ``height x width`` there are."""
    mh, mw = (grid, grid) if isinstance(grid, int) else grid
    return min(mh, height), min(mw, width)


def patch_basis(
    size: int,
    start: int,
    stop: int,
    patch: int,
    count: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The orthonormal DCT-II basis of an axis, at the positions of evenly spread patches.

    Patch p of ``count`` holds the positions ``t(p) .. t(p) + patch - 1``, with
    ``t(p) = patch * ((p + 1/2) * cells / count - 1/2)`` and ``cells = size // patch``: integers
    if ``count`` is ``cells``. Row ``u * patch + a`` is frequency ``start + u`` at ``t(p) + a``,
    ``s(u) cos(pi u (2 t + 1) / (2 size))``. For ``patch=1`` this is the ``count``-point DCT,
    scaled by ``sqrt(count / size)``.

    Returns:
        ``((stop - start) * patch, count)``.

    >>> basis = patch_basis(12, 0, 3, 1, 4, torch.float64, torch.device("cpu"))
    >>> torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64) * 4 / 12)
    True
    """
    if torch.compiler.is_compiling():
        return _patch_basis(size, start, stop, patch, count).to(device, dtype)
    return _cached(size, start, stop, patch, count, dtype, device)


@lru_cache(maxsize=256)
def _cached(
    size: int,
    start: int,
    stop: int,
    patch: int,
    count: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    # A tensor born in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return _patch_basis(size, start, stop, patch, count).to(device, dtype)


def _patch_basis(size: int, start: int, stop: int, patch: int, count: int) -> Tensor:
    where = torch.device("cpu")  # not every device has float64
    cells = size // patch
    p = torch.arange(count, dtype=torch.float64, device=where)
    first = patch * ((p + 0.5) * (cells / count) - 0.5)  # (count,)
    if count == cells:
        first = patch * p
    t = first + torch.arange(patch, dtype=torch.float64, device=where)[:, None]  # (r, count)
    u = torch.arange(start, stop, dtype=torch.float64, device=where)[:, None, None]
    scale = torch.sqrt(torch.where(u == 0, 1.0, 2.0).to(u.dtype) / size)
    return (torch.cos(u * (2 * t + 1) * (math.pi / 2 / size)) * scale).flatten(0, 1)
