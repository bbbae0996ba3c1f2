"""Frequency self-attention: analyse once, work on K coefficients, synthesise once.

Source: FsaNet (arXiv 2211.15595), section III; the coefficient-space identities go past it
(docs/method.md).

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
d query/key channels, e value channels, P (N, K) the dense basis, s (B, C, K) the coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.attention.block import AttentionBlock, Block
from fsanet.attention.dct import Band, BandLike, analyse, dct_bases, full_precision, synthesise
from fsanet.attention.dot import dot_rounds
from fsanet.attention.kernels import analyse_and_keep
from fsanet.attention.linear import linear_rounds
from fsanet.attention.similarity import Similarity, attend
from fsanet.attention.spectrum import Spectrum
from fsanet.attention.terms import add_terms

__all__ = ["FrequencySelfAttention"]


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
            x, coefficients = analyse_and_keep(x, rows, columns)  # (B, C, kh, kw)
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
            spectrum = Spectrum.of(coefficients, rows, columns, has_dc)
            if self.similarity == "dot":
                tokens, constant = dot_rounds(self, spectrum)
                return synthesise(
                    spectrum.plane(tokens), rows, columns, residual=residual, constant=constant
                )
            if self._on_map(spectrum.size):
                return self._add_on_map(residual, spectrum, map_dtype)
            terms, grid, constant = linear_rounds(self, spectrum)
            return add_terms(residual, terms, grid, constant)

    # -- softmax, and bands so wide that K coefficients are more than d channels

    def _on_map(self, size: int) -> bool:
        """Whether tokens at N positions (d, d and e channels) cost less than N x K."""
        if self.similarity == "softmax":
            return True
        return size > 2 * self.query.out_features + self.value.out_features

    def _add_on_map(self, residual: Tensor, spectrum: Spectrum, dtype: torch.dtype) -> Tensor:
        rows, columns, s = spectrum.rows, spectrum.columns, spectrum.tokens  # (B, K, C)
        attended_dtype = dtype if self.similarity == "softmax" else s.dtype
        y = residual
        for round_ in range(self.recurrence):
            tokens = []
            for linear in (self.query, self.key, self.value):
                coefficients = spectrum.plane(nn.functional.linear(s, linear.weight.to(s.dtype)))
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
                s = s + analyse(out.to(s.dtype), rows, columns).flatten(2).mT
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, band={self.band}"


def _map_dtype(x: Tensor) -> torch.dtype:
    """The dtype softmax attention over the map runs in: autocast's, or that of ``x``."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
