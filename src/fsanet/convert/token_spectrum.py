"""Token maps as low-frequency coefficients, and their values on any grid of points.

Source: FsaNet (arXiv 2211.15595), section III. A band-limited map is a sum of cosines, so it can
also be evaluated between its positions. That is how keys and values move to a coarser grid.

Legend: B batch, C input channels, c output channels, H x W grid, N = H*W positions, kh x kw kept
frequencies, r patch side, mh x mw points, M = mh*mw.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fsanet.attention.dct import Band, dct_bases
from fsanet.attention.kernels import analyse
from fsanet.errors import InputError

__all__ = ["TokenSpectrum", "grid_points", "patch_basis"]


class TokenSpectrum(NamedTuple):
    """The coefficients of a token map, channels last, with the bases of its grid.

    With all frequencies kept the values are the tokens themselves: linear layers then cost the
    same on N tokens as on N coefficients, and both transforms are saved.

    Attributes:
        values: ``(B, kh, kw, C)``.
        rows: ``(kh, H)``.
        columns: ``(kw, W)``.
        band: the kept frequencies, clipped to the grid.
        whole: whether the values are the tokens ``(B, H, W, C)``, as all frequencies are kept.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    band: Band
    whole: bool = False

    @classmethod
    def of(cls, tokens: Tensor, height: int, width: int, band: Band) -> TokenSpectrum:
        """Analyse tokens ``(B, N, C)`` in row-major order.

        Raises:
            InputError: there are not ``height * width`` tokens.
        """
        if tokens.ndim != 3 or tokens.shape[1] != height * width:
            raise InputError(
                f"expected tokens (B, {height * width}, C) of a {height}x{width} grid, "
                f"got {tuple(tokens.shape)}"
            )
        band = band.clip(height, width)
        plane = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, C, H, W), a view
        rows, columns = dct_bases(plane, band)
        if band.covers(height, width):
            return cls(plane.permute(0, 2, 3, 1).to(rows.dtype), rows, columns, band, whole=True)
        values = analyse(plane, rows, columns)  # (B, C, kh, kw)
        return cls(values.permute(0, 2, 3, 1), rows, columns, band)

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.rows.shape[1], self.columns.shape[1]

    def tokens(self) -> Tensor:
        """The low-passed tokens ``(B, N, C)``."""
        return self._at_positions(self.values)

    def project(
        self, weight: Tensor, bias: Tensor | None, points: tuple[int, int] | None = None
    ) -> Tensor:
        """Apply a linear layer to the low-passed tokens; it commutes with the transform.

        Args:
            weight: ``(c, C)``.
            bias: ``(c,)`` or None.
            points: (mh, mw) evenly spaced points to evaluate at; None: all positions.

        Returns:
            ``(B, M, c)``, or ``(B, N, c)`` at all positions.
        """
        values = linear(self.values, weight.to(self.values.dtype))  # (B, kh, kw, c)
        if points is None or points == self.size:
            return self._at_positions(values, bias)
        return _evaluate(values, *self._bases_at(1, points), bias)

    def convolve_patches(self, convolution: nn.Conv2d, points: tuple[int, int]) -> Tensor:
        """Apply a convolution whose stride equals its kernel size to the low-passed map.

        The r x r taps of the kernel act on the coefficients, so the map itself is never built.

        Args:
            convolution: kernel r x r, stride r, no padding.
            points: (mh, mw) patches. With (H // r, W // r) the result equals the convolution's;
                with fewer, patches of the same size are spread evenly over the map.

        Returns:
            ``(B, M, c)``.
        """
        r, channels = convolution.stride[0], convolution.out_channels
        batch, kh, kw, _ = self.values.shape
        taps = convolution.weight.permute(2, 3, 0, 1).flatten(0, 2)  # (r*r*c, C)
        t = linear(self.values, taps.to(self.values.dtype)).unflatten(3, (r, r, channels))
        t = t.permute(0, 1, 3, 2, 4, 5).reshape(batch, kh * r, kw * r, channels)
        return _evaluate(t, *self._bases_at(r, points), convolution.bias)

    def _at_positions(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """The tokens ``(B, N, c)`` of values ``(B, kh, kw, c)``."""
        if not self.whole:
            return _evaluate(values, self.rows, self.columns, bias)
        tokens = values.flatten(1, 2)  # (B, N, c)
        return tokens if bias is None else tokens + bias.to(tokens.dtype)

    def _bases_at(self, patch: int, points: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What maps the values to patches, for both axes: (kh * r, mh) and (kw * r, mw).

        That is `patch_basis`, or from the tokens themselves analysis and `patch_basis` in one.
        """
        (height, width), band = self.size, self.band
        options = (self.rows.dtype, self.rows.device)
        basis = patch_basis if torch.compiler.is_compiling() else _cached_patch_basis
        found = (
            basis(height, band.h0, band.h0 + self.rows.shape[0], patch, points[0], *options),
            basis(width, band.w0, band.w0 + self.columns.shape[0], patch, points[1], *options),
        )
        if not self.whole:
            return found
        return _from_tokens(self.rows, found[0]), _from_tokens(self.columns, found[1])


def _from_tokens(axis: Tensor, patches: Tensor) -> Tensor:
    """Analysis by a whole basis (n, n), then a patch basis (n * r, m): (n * r, m)."""
    return (axis.mT @ patches.unflatten(0, (axis.shape[0], -1)).flatten(1)).reshape(patches.shape)


def _evaluate(values: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """The map with coefficients ``(B, kh, kw, c)`` at the points of two bases: ``(B, M, c)``."""
    batch, kh, _, channels = values.shape
    mh, mw = rows.shape[1], columns.shape[1]
    t = (columns.mT @ values).reshape(batch, kh, mw * channels)  # (B, kh, mw*c)
    tokens = (rows.mT @ t).reshape(batch, mh * mw, channels)  # (B, M, c)
    return tokens if bias is None else tokens + bias.to(tokens.dtype)


def grid_points(grid: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """The grid of keys, no finer than the ``height x width`` map."""
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
    """The orthonormal DCT-II basis of an axis at the positions of evenly spaced patches.

    Patch p of ``count`` covers the positions ``t(p) .. t(p) + patch - 1``, with
    ``t(p) = patch * ((p + 1/2) * cells / count - 1/2)`` and ``cells = size // patch``: integers
    if ``count`` equals ``cells``. Row ``u * patch + a`` is frequency ``start + u`` at
    ``t(p) + a``, ``s(u) cos(pi u (2 t + 1) / (2 size))``. For ``patch=1`` this is the
    ``count``-point DCT, scaled by ``sqrt(count / size)``.

    Returns:
        ``((stop - start) * patch, count)``.

    >>> basis = patch_basis(12, 0, 3, 1, 4, torch.float64, torch.device("cpu"))
    >>> torch.allclose(basis @ basis.T, torch.eye(3, dtype=torch.float64) * 4 / 12)
    True
    """
    arange = partial(torch.arange, dtype=torch.float64, device="cpu")  # not all devices have it
    cells = size // patch
    p = arange(count)
    first = patch * p if count == cells else patch * ((p + 0.5) * (cells / count) - 0.5)
    t = first + arange(patch)[:, None]  # (r, count)
    u = arange(start, stop)[:, None, None]
    scale = torch.sqrt(torch.where(u == 0, 1.0, 2.0).to(u.dtype) / size)
    basis = torch.cos(u * (2 * t + 1) * (math.pi / 2 / size)) * scale  # (stop - start, r, count)
    return basis.flatten(0, 1).to(device, dtype)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a tensor created in inference mode could not be trained with later
@torch.no_grad()
def _cached_patch_basis(*arguments: object) -> Tensor:
    return patch_basis(*arguments)  # type: ignore[arg-type]
