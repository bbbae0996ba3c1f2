"""One treatment per frequency band: attention, grouped 1x1 convolution, identity or drop.

Source: FsaNet (arXiv 2211.15595), section III, "individual treatment" of the bands.

Legend: B batch, C channels, H x W grid, kh x kw frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import inf
from typing import Literal

from torch import Tensor, nn

from fsanet.attention.dct import Band, BandLike, dct_bases, full_precision, synthesise
from fsanet.attention.dot import dot_rounds
from fsanet.attention.frequency import FrequencySelfAttention
from fsanet.attention.kernels import analyse_and_keep
from fsanet.attention.spectrum import Spectrum
from fsanet.errors import InputError

__all__ = ["BandTreatments"]

Treatment = Literal["identity", "drop"] | FrequencySelfAttention | nn.Conv2d


class BandTreatments(nn.Module):
    """Cut the frequency plane into bands and treat each in its own way.

    Args:
        treatments: pairs of a band (as :meth:`fsanet.attention.dct.Band.of` reads it; ranges may
            be open, ``(8, None)``) and what happens to it: ``"identity"``, ``"drop"``, a
            :class:`FrequencySelfAttention` (its own ``k`` is set aside; the band is the one given
            here) or an ``nn.Conv2d`` with kernel 1 and no bias, acting on coefficients (the same
            as on the map). One module may treat several bands: they then share its weights.
        rest: treatment of all frequencies that no band covers, "identity" or "drop"; with None
            the bands have to cover the whole plane.

    Raises:
        InputError: if bands overlap (it says where), leave a gap with ``rest=None``, or a
            treatment is none of the above.

    >>> import torch
    >>> layer = BandTreatments(
    ...     [
    ...         (8, FrequencySelfAttention(32)),
    ...         (((0, 8), (8, 16)), nn.Conv2d(32, 32, 1, groups=32, bias=False)),
    ...     ],
    ...     rest="identity",
    ... )
    >>> layer(torch.randn(1, 32, 24, 40)).shape
    torch.Size([1, 32, 24, 40])
    """

    def __init__(
        self,
        treatments: Sequence[tuple[BandLike, Treatment]],
        *,
        rest: Literal["identity", "drop"] | None = "identity",
    ) -> None:
        super().__init__()
        if rest not in ("identity", "drop", None):
            raise InputError(f'rest={rest!r}: use "identity", "drop" or None')
        if not treatments:
            raise InputError("no band is given: list at least one (band, treatment) pair")
        self.bands = [Band.of(band) for band, _ in treatments]
        _check_disjoint(self.bands)
        if rest is None:
            _check_covering(self.bands)
        self.rest = rest
        self.kinds: list[str] = []
        self.layers = nn.ModuleList()
        for band, (_, treatment) in zip(self.bands, treatments, strict=True):
            self.kinds.append(_kind(band, treatment))
            self.layers.append(treatment if isinstance(treatment, nn.Module) else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in any float dtype to the same shape and dtype."""
        height, width = x.shape[-2:]
        # Either change what is not kept as it is, or build up what is kept: never both.
        build_up = self.rest == "drop" or (self.rest is None and "identity" not in self.kinds)
        untouched = "drop" if build_up else "identity"
        active = []
        for band, kind, layer in zip(self.bands, self.kinds, self.layers, strict=True):
            if kind != untouched and band.h0 < height and band.w0 < width:
                active.append((band, kind, layer))
        if not active:
            return x.new_zeros(x.shape) if build_up else x
        box = _around([band for band, *_ in active]).clip(height, width)
        with full_precision(x):
            rows, columns = dct_bases(x, box)
            kept, coefficients = analyse_and_keep(x, rows, columns)  # (B, C, box height, box width)
            total = coefficients.new_zeros(coefficients.shape)
            constants: list[Tensor] = []
            later: list[tuple] = []
            for wide, kind, layer in active:
                band = wide.clip(height, width)
                top, left = band.h0 - box.h0, band.w0 - box.w0
                kh, kw = band.h1 - band.h0, band.w1 - band.w0  # type: ignore[operator]
                c = coefficients[:, :, top : top + kh, left : left + kw]
                if isinstance(layer, FrequencySelfAttention):
                    change = c.new_zeros(c.shape)
                    band_rows, band_columns = dct_bases(x, band)  # a slice would pin H at export
                    if layer.similarity == "dot":
                        spectrum = Spectrum.of(c, band_rows, band_columns, band.has_dc)
                        tokens, constant = dot_rounds(layer, spectrum)
                        change = spectrum.plane(tokens)
                        if constant is not None:
                            constants.append(constant)
                    else:  # its output leaves the band, so it is added to the map
                        later.append((layer, c, band_rows, band_columns, band.has_dc))
                elif isinstance(layer, nn.Conv2d):
                    weight = layer.weight.to(c.dtype)
                    change = nn.functional.conv2d(c, weight, groups=layer.groups) - c
                else:  # "drop", or "identity" while building up
                    change = -c if kind == "drop" else c.new_zeros(c.shape)
                part = c + change if build_up else change
                edges = (left, total.shape[3] - left - kw, top, total.shape[2] - top - kh)
                total = total + nn.functional.pad(part, edges)
            y = synthesise(
                total,
                rows,
                columns,
                residual=None if build_up else kept,
                constant=sum(constants[1:], constants[0]) if constants else None,
            ).to(x.dtype)
        for layer, c, band_rows, band_columns, has_dc in later:
            y = layer.add(y, c, band_rows, band_columns, has_dc)
        return y

    def extra_repr(self) -> str:
        cuts = [f"{band}: {kind}" for band, kind in zip(self.bands, self.kinds, strict=True)]
        return "; ".join([*cuts, f"rest: {self.rest}"])


def _kind(band: Band, treatment: object) -> str:
    if isinstance(treatment, FrequencySelfAttention):
        return "attention"
    if isinstance(treatment, nn.Conv2d):
        if (
            treatment.kernel_size != (1, 1)
            or treatment.stride != (1, 1)
            or treatment.padding
            != (
                0,
                0,
            )
        ):
            raise InputError(
                f"band {band}: only a convolution with kernel 1, stride 1 and no padding commutes "
                f"with the transform, got {treatment}"
            )
        if treatment.bias is not None:
            raise InputError(
                f"band {band}: a bias on coefficients is no bias on the map; use bias=False"
            )
        return "convolution"
    if treatment in ("identity", "drop"):
        return str(treatment)
    raise InputError(
        f'band {band}: {treatment!r} is no treatment; use "identity", "drop", a '
        "FrequencySelfAttention or a 1x1 nn.Conv2d without bias"
    )


def _around(bands: Sequence[Band]) -> Band:
    """The smallest band that holds all of ``bands``."""
    h1, w1 = max(_stop(b.h1) for b in bands), max(_stop(b.w1) for b in bands)
    return Band(
        min(b.h0 for b in bands),
        None if h1 == inf else int(h1),
        min(b.w0 for b in bands),
        None if w1 == inf else int(w1),
    )


def _stop(stop: int | None) -> float:
    return inf if stop is None else stop


def _check_disjoint(bands: Sequence[Band]) -> None:
    for (i, a), (j, b) in combinations(enumerate(bands), 2):
        top, bottom = max(a.h0, b.h0), min(_stop(a.h1), _stop(b.h1))
        left, right = max(a.w0, b.w0), min(_stop(a.w1), _stop(b.w1))
        if top < bottom and left < right:
            twice = Band(
                top,
                None if bottom == inf else int(bottom),
                left,
                None if right == inf else int(right),
            )
            raise InputError(
                f"frequencies {twice} (rows x columns) are covered twice: by band {i} {a} and by "
                f"band {j} {b}; cut one of them"
            )


def _check_covering(bands: Sequence[Band]) -> None:
    row_cuts = sorted({0, inf, *(b.h0 for b in bands), *(_stop(b.h1) for b in bands)})
    column_cuts = sorted({0, inf, *(b.w0 for b in bands), *(_stop(b.w1) for b in bands)})
    for top, bottom in pairwise(row_cuts):
        for left, right in pairwise(column_cuts):
            if not any(
                b.h0 <= top and bottom <= _stop(b.h1) and b.w0 <= left and right <= _stop(b.w1)
                for b in bands
            ):
                gap = Band(
                    int(top),
                    None if bottom == inf else int(bottom),
                    int(left),
                    None if right == inf else int(right),
                )
                raise InputError(
                    f"frequencies {gap} (rows x columns) are covered by no band; add one, or give "
                    'rest="identity" or rest="drop"'
                )
