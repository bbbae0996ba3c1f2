"""One treatment per frequency band: attention, grouped 1x1 convolution, identity or drop.

Source: FsaNet (arXiv 2211.15595), section III, "individual treatment" of the bands.

Legend: B batch, C channels, H x W grid, kh x kw frequencies of a band, bh x bw frequencies of the
box around all bands that change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import inf
from typing import Literal

from torch import Tensor, nn

from fsanet.attention.dct import Band, BandLike, Basis, full_precision
from fsanet.attention.dot import dot_rounds
from fsanet.attention.frequency import FrequencySelfAttention
from fsanet.attention.kernels import analyse_with_residual, synthesise
from fsanet.errors import InputError

__all__ = ["BandTreatments"]

Treatment = Literal["identity", "drop"] | FrequencySelfAttention | nn.Conv2d


class BandTreatments(nn.Module):
    """Cut the frequency plane into bands and treat each in its own way.

    Args:
        treatments: pairs of a band (see :meth:`fsanet.attention.dct.Band.of`; a range may be open,
            ``(8, None)``) and its treatment: ``"identity"``, ``"drop"``, a
            :class:`FrequencySelfAttention` (the band given here replaces its own ``k``) or an
            ``nn.Conv2d`` with kernel 1 and no bias, which acts on coefficients as it does on the
            map. Several bands may share one module and so its weights.
        rest: treatment of all other frequencies, "identity" or "drop"; with None the bands have
            to cover the whole plane.

    Raises:
        InputError: bands overlap, leave a gap although ``rest=None``, or have another treatment.

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
        _check_cut(self.bands, covering=rest is None)
        self.rest = rest
        self.kinds: list[str] = []
        self.layers = nn.ModuleList()
        for band, (_, treatment) in zip(self.bands, treatments, strict=True):
            self.kinds.append(_kind(band, treatment))
            self.layers.append(treatment if isinstance(treatment, nn.Module) else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in any float dtype to the same shape and dtype."""
        height, width = x.shape[-2:]
        # Either the map is changed where it differs, or built up from zero of all that is kept.
        build_up = self.rest == "drop" or (self.rest is None and "identity" not in self.kinds)
        no_change = "drop" if build_up else "identity"
        active = [
            (band, kind, layer)
            for band, kind, layer in zip(self.bands, self.kinds, self.layers, strict=True)
            if kind != no_change and band.h0 < height and band.w0 < width
        ]
        if not active:
            return x.new_zeros(x.shape) if build_up else x
        box = _box([band for band, *_ in active]).clip(height, width)
        constant: Tensor | None = None
        on_map: list[tuple[FrequencySelfAttention, Tensor, Basis]] = []
        with full_precision(x):
            box_basis = Basis.of(x, box)
            residual, coefficients = analyse_with_residual(x, box_basis.rows, box_basis.columns)
            total = coefficients.new_zeros(coefficients.shape)  # (B, C, bh, bw)
            for open_band, kind, layer in active:
                band = open_band.clip(height, width)
                top, left = band.h0 - box.h0, band.w0 - box.w0
                kh, kw = band.h1 - band.h0, band.w1 - band.w0  # type: ignore[operator]
                c = coefficients[:, :, top : top + kh, left : left + kw]  # (B, C, kh, kw)
                change = c.new_zeros(c.shape)
                if isinstance(layer, FrequencySelfAttention):
                    basis = Basis.of(x, band)  # a slice of the box's would fix H at export
                    if layer.similarity == "dot":
                        tokens, added = dot_rounds(layer, basis.to_tokens(c), basis)
                        change = basis.to_plane(tokens)
                        if added is not None:
                            constant = added if constant is None else constant + added
                    else:  # the output of other similarities leaves the band: added to the map
                        on_map.append((layer, c, basis))
                elif isinstance(layer, nn.Conv2d):
                    weight = layer.weight.to(c.dtype)
                    change = nn.functional.conv2d(c, weight, groups=layer.groups) - c
                elif kind == "drop":
                    change = -c
                part = c + change if build_up else change
                edges = (left, total.shape[3] - left - kw, top, total.shape[2] - top - kh)
                total = total + nn.functional.pad(part, edges)
            y = synthesise(
                total,
                box_basis.rows,
                box_basis.columns,
                residual=None if build_up else residual,
                constant=constant,
            ).to(x.dtype)
        for layer, c, basis in on_map:
            y = layer.add(y, c, basis)
        return y

    def extra_repr(self) -> str:
        cuts = [f"{band}: {kind}" for band, kind in zip(self.bands, self.kinds, strict=True)]
        return "; ".join([*cuts, f"rest: {self.rest}"])


def _kind(band: Band, treatment: object) -> str:
    if isinstance(treatment, FrequencySelfAttention):
        return "attention"
    if isinstance(treatment, nn.Conv2d):
        pointwise = treatment.kernel_size == treatment.stride == (1, 1)
        if not pointwise or treatment.padding != (0, 0):
            raise InputError(
                f"band {band}: only a convolution with kernel 1, stride 1 and no padding commutes "
                f"with the transform, got {treatment}"
            )
        if treatment.bias is not None:
            raise InputError(
                f"band {band}: a bias on coefficients is not a bias on the map; use bias=False"
            )
        return "convolution"
    if treatment in ("identity", "drop"):
        return str(treatment)
    raise InputError(
        f'band {band}: {treatment!r} is not a treatment; use "identity", "drop", a '
        "FrequencySelfAttention or a 1x1 nn.Conv2d without bias"
    )


def _stop(stop: int | None) -> float:
    return inf if stop is None else stop


def _band(h0: float, h1: float, w0: float, w1: float) -> Band:
    """The band with these bounds, infinity for an open end."""
    rows, columns = ((int(a), None if b == inf else int(b)) for a, b in ((h0, h1), (w0, w1)))
    return Band(*rows, *columns)


def _box(bands: Sequence[Band]) -> Band:
    """The smallest band that contains all of ``bands``."""
    return _band(
        min(b.h0 for b in bands),
        max(_stop(b.h1) for b in bands),
        min(b.w0 for b in bands),
        max(_stop(b.w1) for b in bands),
    )


def _check_cut(bands: Sequence[Band], *, covering: bool) -> None:
    """Raise an InputError unless at most one band (``covering``: exactly one) holds each frequency.

    All borders together cut the plane into cells, each inside a band or outside.
    """
    row_cuts = sorted({0, inf, *(b.h0 for b in bands), *(_stop(b.h1) for b in bands)})
    column_cuts = sorted({0, inf, *(b.w0 for b in bands), *(_stop(b.w1) for b in bands)})
    for (top, bottom), (left, right) in product(pairwise(row_cuts), pairwise(column_cuts)):
        holding = [
            (index, b)
            for index, b in enumerate(bands)
            if b.h0 <= top and bottom <= _stop(b.h1) and b.w0 <= left and right <= _stop(b.w1)
        ]
        cell = _band(top, bottom, left, right)
        if len(holding) > 1:
            (i, a), (j, b) = holding[:2]
            raise InputError(
                f"frequencies {cell} (rows x columns) are covered twice: by band {i} {a} and by "
                f"band {j} {b}; cut one of them"
            )
        if covering and not holding:
            raise InputError(
                f"frequencies {cell} (rows x columns) are covered by no band; add one, or give "
                'rest="identity" or rest="drop"'
            )
