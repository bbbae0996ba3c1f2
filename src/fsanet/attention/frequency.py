"""Frequency self-attention: analyse once, work on K coefficients, synthesise once.

Source: FsaNet (arXiv 2211.15595), section III; the coefficient-space identities go past it
(docs/method.md).

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
d query/key channels, e value channels, P (N, K) the dense basis, s (B, C, K) the coefficients.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fsanet.attention.block import AttentionBlock, Block
from fsanet.attention.norm import batch_norm_affine
from fsanet.attention.similarity import (
    Similarity,
    attend,
    floor_squared_norm,
    guard_denominator,
)
from fsanet.dct import (
    Band,
    BandLike,
    add_in_parts,
    add_product,
    analyse,
    channels_last,
    dct_bases,
    dense_basis,
    in_parts,
    synthesise,
)

__all__ = ["FrequencySelfAttention"]


class Spectrum(NamedTuple):
    """Coefficients of a band, with all that is needed to work on them and to leave them.

    ``values`` is (B, C, K); ``rows`` (kh, H) and ``columns`` (kw, W) are the bases.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    has_dc: bool

    @property
    def positions(self) -> int:
        return self.rows.shape[1] * self.columns.shape[1]

    @property
    def size(self) -> int:
        return self.rows.shape[0] * self.columns.shape[0]

    def plane(self, values: Tensor) -> Tensor:
        """(B, c, K) as (B, c, kh, kw)."""
        return values.reshape(*values.shape[:2], self.rows.shape[0], self.columns.shape[0])


class FrequencySelfAttention(AttentionBlock):
    """Self-attention over the low frequencies of a map; the high ones pass untouched.

    ``y = x + attention(low-pass(x))``, with the low-pass the ``k x k`` lowest frequencies of the
    2-D DCT. It is the very function that :class:`SpatialSelfAttention` computes on the low-passed
    map (equal to it in exact arithmetic for every similarity, recurrence and batch norm mode), at
    a cost of O(N k) per channel.

    For "dot", "linear_softmax" and "linear" the map is read once and written once however large
    ``recurrence`` is; projections, batch norm, bias and gate act on coefficients. "softmax" keeps
    the exponential and so attends over all N positions. Coefficients, bases and norms are float32
    at least, under autocast too. Any H and W at any call; a band larger than the map is clipped.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        k: the band: ``int`` (lowest k x k), ``(kh, kw)``, ranges ``((h0, h1), (w0, w1))``, or
            ``None`` for all frequencies. The paper uses 8 and 5.
        similarity: "dot" (``v (k^T q) / N``), "linear_softmax" (``1 + cos``, normalised),
            "linear" (``1 + scale * q.k``, normalised: the first order of softmax) or "softmax".
            With "linear" the normaliser can come near zero or turn negative, as ``1 + s`` is not
            positive by itself; it is kept ``1e-6 * N`` away from zero.
        recurrence: applications with the same weights (the paper: 2).
        block, qk_channels, value_channels, qkv_bias, norm, scale, zero_init: the block's shape,
            see :class:`fsanet.attention.block.AttentionBlock`.

    Raises:
        InputError: for a band or an option that makes no sense; at run time for an input of
            another shape, or a map that has none of the band's frequencies.

    Source: arXiv 2211.15595, section III; recurrence: section IV.

    >>> layer = FrequencySelfAttention(64, k=8, similarity="dot", recurrence=2)
    >>> layer(torch.randn(2, 64, 33, 47)).shape
    torch.Size([2, 64, 33, 47])
    """

    def __init__(
        self,
        channels: int,
        *,
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qk_channels: int | None = None,
        value_channels: int | None = None,
        qkv_bias: bool = False,
        norm: bool = True,
        scale: float | None = None,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            similarity=similarity,
            recurrence=recurrence,
            block=block,
            qk_channels=qk_channels,
            value_channels=value_channels,
            qkv_bias=qkv_bias,
            norm=norm,
            scale=scale,
            zero_init=zero_init,
            device=device,
            dtype=dtype,
        )
        self.band = Band.of(k)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in any float dtype; the same shape, dtype and memory layout back."""
        self.check_input(x)
        band = self.band.clip(x.shape[-2], x.shape[-1])
        with full_precision(x):
            rows, columns = dct_bases(x, band)
            coefficients = analyse(x, rows, columns)  # (B, C, kh, kw)
        return self.add(x, coefficients, rows, columns, band.has_dc)

    def add(
        self, residual: Tensor, coefficients: Tensor, rows: Tensor, columns: Tensor, has_dc: bool
    ) -> Tensor:
        """Attention over given coefficients, added to a map.

        Args:
            residual: ``(B, C, H, W)``.
            coefficients: ``(B, C, kh, kw)`` of the attention's input.
            rows: ``(kh, H)`` basis of the band.
            columns: ``(kw, W)`` basis of the band.
            has_dc: whether the band holds frequency (0, 0), first in both bases.
        """
        map_dtype = _map_dtype(residual)
        with full_precision(residual):
            spectrum = Spectrum(coefficients.flatten(2), rows, columns, has_dc)
            if self.similarity == "dot":
                values, constant = self.mix(spectrum)
                return synthesise(
                    spectrum.plane(values), rows, columns, residual=residual, constant=constant
                )
            if self._on_map(spectrum.size):
                return self._add_on_map(residual, spectrum, map_dtype)
            left, right = self._factors(spectrum)
            return _add_factors(residual, left, right)

    # -- dot: everything stays in the band ------------------------------------------------------

    def mix(self, spectrum: Spectrum) -> tuple[Tensor, Tensor | None]:
        """All rounds of dot-product attention, on coefficients.

        Returns:
            ``(B, C, K)``, the coefficients of what is added to the input, and ``(B, C)``, a value
            to add at every position, or None: the constant part of the output where the band
            lacks the DC term.
        """
        s, positions = spectrum.values, spectrum.positions
        # Biases and batch norm make constants: a band without DC gets it as one more coefficient.
        extended = not spectrum.has_dc and (
            self.norm is not None or self.bias is not None or self.qkv_bias
        )
        dc = spectrum.size if extended else 0
        total = torch.zeros_like(nn.functional.pad(s, (0, 1)) if extended else s)
        for round_ in range(self.recurrence):
            x = nn.functional.pad(s, (0, 1)) if extended else s  # (B, C, K')
            q = _project(self.query, x, dc, positions)  # (B, d, K')
            k = _project(self.key, x, dc, positions)
            v = _project(self.value, x, dc, positions)  # (B, e, K')
            d, e, size = q.shape[1], v.shape[1], x.shape[2]
            if size * (d + e) <= 2 * d * e:  # the cheaper bracket; never N x N, even at full band
                out = v @ (k.mT @ (q / positions))
            else:
                out = (v @ k.mT) @ (q / positions)
            out = self._finish_coefficients(out, dc, positions)  # (B, C, K')
            total = total + out
            if round_ + 1 < self.recurrence:
                s = s + out[..., : spectrum.size]
        if not extended:
            return total, None
        return total[..., :-1], total[..., -1] / positions**0.5

    def _finish_coefficients(self, out: Tensor, dc: int, positions: int) -> Tensor:
        """Output projection, batch norm, bias and gate: they commute with the basis."""
        root = positions**0.5  # the coefficient of the map of ones
        if self.out is not None:
            out = self.out.weight.to(out.dtype) @ out
        constant = None
        if self.norm is not None:
            mean = out[..., dc] / root  # (B, C)
            rest = torch.cat([out[..., :dc], out[..., dc + 1 :]], -1)
            energy = rest.square().sum(-1)  # Parseval: all but DC is the spread around the mean
            scale, constant = batch_norm_affine(self.norm, mean, energy, positions)
            out = out * scale[:, None]
        if self.bias is not None:
            bias = self.bias.to(out.dtype)
            constant = bias if constant is None else constant + bias
        if constant is not None:
            out = _add_constant(out, constant, dc, root)
        return out if self.gate is None else out * self.gate.to(out.dtype)

    # -- linear and linear_softmax: N x K beside the coefficients -------------------------------

    def _factors(self, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
        """What is added to the input, as a product ``left (B, C, J) @ right (B, J, N)``.

        J is (K + 1) per round, and one more if constants are added.
        """
        s, positions = spectrum.values, spectrum.positions
        band_basis = dense_basis(spectrum.rows, spectrum.columns)  # (N, K)
        basis, dc = band_basis, 0
        extended = not spectrum.has_dc and self.qkv_bias
        if extended:  # the tokens' biases need the constant, and the band lacks it
            constant_column = band_basis.new_ones(positions, 1) / positions**0.5
            basis, dc = torch.cat([band_basis, constant_column], 1), spectrum.size
        has_constant = spectrum.has_dc or extended
        lefts, rights, constants = [], [], []
        for round_ in range(self.recurrence):
            x = nn.functional.pad(s, (0, 1)) if extended else s  # (B, C, K')
            q = _project(self.query, x, dc, positions)  # (B, d, K')
            k = _project(self.key, x, dc, positions)
            v = _project(self.value, x, dc, positions)
            if self.out is not None:
                v = self.out.weight.to(v.dtype) @ v  # (B, C, K')
            left, right = self._weights(q, k, v, basis, dc if has_constant else None)
            left, constant = self._finish_factors(left, right, positions)
            lefts.append(left)
            rights.append(right)
            if constant is not None:
                constants.append(constant)
            if round_ + 1 < self.recurrence:
                s = s + left @ (right @ band_basis)
                if constant is not None and spectrum.has_dc:
                    s = _add_constant(s, constant, 0, positions**0.5)
        if constants:
            total = torch.stack(constants).sum(0)  # (C,)
            lefts.append(total[:, None].expand(s.shape[0], -1, 1))
            rights.append(rights[0].new_ones(1, 1, positions).expand(s.shape[0], 1, positions))
        return torch.cat(lefts, 2), torch.cat(rights, 1)

    def _weights(
        self, q: Tensor, k: Tensor, v: Tensor, basis: Tensor, dc: int | None
    ) -> tuple[Tensor, Tensor]:
        """One round: the attended map as ``left (B, C, K' + 1) @ right (B, K' + 1, N)``.

        At position p the sum of weighted values is ``A P_p |q_p|^-1 + b``, over
        ``N + q_p . sum(keys) / |q_p|`` (method: "What can stay in coefficient space").
        """
        positions = basis.shape[0]
        if self.similarity == "linear_softmax":
            q_inverse = _inverse_lengths(q, basis)  # (B, N)
            k_inverse = _inverse_lengths(k, basis)
            weighted = basis * k_inverse.unsqueeze(-1)  # (B, N, K')
            left = v @ ((weighted.mT @ basis) @ (k.mT @ q))  # (B, C, K')
            key_sum = k @ weighted.sum(1).unsqueeze(-1)  # (B, d, 1)
        else:
            k = k * self.scale
            left = v @ (k.mT @ q)
            key_sum = _sum_over_positions(k, dc, positions)
            q_inverse = q.new_ones(1)
        similarity_sum = (basis @ (q.mT @ key_sum)).squeeze(-1) * q_inverse  # (B, N)
        weight = guard_denominator(positions + similarity_sum, positions).reciprocal()
        right = basis.T * (q_inverse * weight).unsqueeze(1)  # (B, K', N)
        left = torch.cat([left, _sum_over_positions(v, dc, positions)], 2)
        return left, torch.cat([right, weight.unsqueeze(1)], 1)

    def _finish_factors(
        self, left: Tensor, right: Tensor, positions: int
    ) -> tuple[Tensor, Tensor | None]:
        """Batch norm, bias and gate on ``left @ right``: new ``left``, and a constant ``(C,)``."""
        constant = None
        if self.norm is not None:
            if self.norm.training or self.norm.running_mean is None:
                mean_right = right.mean(-1, keepdim=True)  # (B, J, 1)
                centred = right - mean_right
                mean = (left @ mean_right).squeeze(-1)  # (B, C)
                energy = ((left @ (centred @ centred.mT)) * left).sum(-1)
            else:  # running averages: the statistics of this batch are not asked for
                mean = energy = left.new_zeros(left.shape[:2])
            scale, constant = batch_norm_affine(self.norm, mean, energy, positions)
            left = left * scale[:, None]
        if self.bias is not None:
            bias = self.bias.to(left.dtype)
            constant = bias if constant is None else constant + bias
        if self.gate is not None:
            gate = self.gate.to(left.dtype)
            left = left * gate
            constant = None if constant is None else constant * gate
        return left, constant

    # -- softmax, and bands so wide that K coefficients are more than d channels ----------------

    def _on_map(self, size: int) -> bool:
        """Whether tokens at N positions (d, d and e channels) cost less than N x K."""
        if self.similarity == "softmax":
            return True
        return size > 2 * self.query.out_features + self.value.out_features

    def _add_on_map(self, residual: Tensor, spectrum: Spectrum, dtype: torch.dtype) -> Tensor:
        rows, columns, s = spectrum.rows, spectrum.columns, spectrum.values
        attended_dtype = dtype if self.similarity == "softmax" else s.dtype
        y = residual
        for round_ in range(self.recurrence):
            tokens = []
            for linear in (self.query, self.key, self.value):
                coefficients = spectrum.plane(linear.weight.to(s.dtype) @ s)
                token = synthesise(coefficients, rows, columns).flatten(2)  # (B, ., N)
                if linear.bias is not None:
                    token = token + linear.bias.to(s.dtype)[:, None]
                tokens.append(token.to(attended_dtype))
            q, k, v = tokens
            out = attend(q, k, v, self.similarity, self.scale)  # (B, e, N)
            out = out.unflatten(2, (rows.shape[1], columns.shape[1]))
            parameter_dtype = self.query.weight.dtype
            out = self.finish_map(out.to(parameter_dtype))  # (B, C, H, W)
            y = y + out.to(y.dtype)
            if round_ + 1 < self.recurrence:
                s = s + analyse(out.to(s.dtype), rows, columns).flatten(2)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, band={self.band}"


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """No autocast around coefficients: their products are few, their rounding is not small."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _map_dtype(x: Tensor) -> torch.dtype:
    """The dtype softmax attention over the map runs in: autocast's, or that of ``x``."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _project(linear: nn.Linear, s: Tensor, dc: int, positions: int) -> Tensor:
    """A 1x1 map on coefficients (B, C, K); its bias is a constant, so it sits on DC alone."""
    out = linear.weight.to(s.dtype) @ s
    if linear.bias is None:
        return out
    return _add_constant(out, linear.bias.to(s.dtype), dc, positions**0.5)


def _add_constant(s: Tensor, constant: Tensor, dc: int, root: float) -> Tensor:
    """Add ``constant`` (C,) at every position of the map whose coefficients are ``s`` (B, C, K)."""
    shifted = s[..., dc : dc + 1] + (constant * root)[:, None]
    return torch.cat([s[..., :dc], shifted, s[..., dc + 1 :]], -1)


def _sum_over_positions(s: Tensor, dc: int | None, positions: int) -> Tensor:
    """(B, C, 1): every basis function but the constant one sums to zero."""
    if dc is None:
        return s.new_zeros(*s.shape[:2], 1)
    return s[..., dc : dc + 1] * positions**0.5


def _inverse_lengths(s: Tensor, basis: Tensor) -> Tensor:
    """``1 / |token|`` at every position (B, N), from the K x K Gram matrix of coefficients."""
    gram = s.mT @ s  # (B, K, K)
    return floor_squared_norm(((basis @ gram) * basis).sum(-1)).rsqrt()


def _add_factors(residual: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``residual + left @ right`` in one pass, in the residual's layout and dtype."""
    batch, channels, height, width = residual.shape
    positions = height * width
    if residual.dtype != left.dtype and in_parts(residual):
        size = (height, width)
        return add_in_parts(residual, lambda part: (left[:, part] @ right).unflatten(2, size))
    if channels_last(residual):
        lines = residual.permute(0, 2, 3, 1).reshape(batch, positions, channels)
        y = add_product(lines, right.mT, left.mT)
        return y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    y = add_product(residual.reshape(batch, channels, positions), left, right)
    return y.reshape(batch, channels, height, width)
