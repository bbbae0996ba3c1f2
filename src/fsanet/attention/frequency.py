"""Frequency self-attention: analyse once, work on K coefficients, synthesise once.

Source: FsaNet (arXiv 2211.15595), section III; the coefficient-space identities go beyond it
(docs/method.md).

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
d query/key channels, e value channels. Tokens (B, K, C) are frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fsanet.attention.block import AttentionBlock, Block
from fsanet.attention.dct import (
    Band,
    BandLike,
    Basis,
    autocast_dtype,
    basis_dtype,
    full_precision,
)
from fsanet.attention.dot import dot_rounds
from fsanet.attention.kernels import add_row_products, analyse, analyse_with_residual, synthesise
from fsanet.attention.linear import linear_rounds
from fsanet.attention.similarity import Similarity, attend
from fsanet.attention.spatial import spatial_rounds
from fsanet.errors import InputError

__all__ = ["FrequencySelfAttention"]


class FrequencySelfAttention(AttentionBlock):
    """Self-attention over the low frequencies of a map; the high frequencies pass unchanged.

    ``y = x + attention(low-pass(x))``, where the low-pass keeps the ``k x k`` lowest frequencies of
    the 2-D DCT. In exact arithmetic it equals :class:`SpatialSelfAttention` on the low-passed map,
    for every similarity, recurrence and batch norm mode, at a cost of O(N k) per channel. A band
    that covers the whole map is computed as the regular layer does where that is cheaper, except
    in half precision.

    With "dot", "linear_softmax" and "linear" the map is read once and written once for any
    ``recurrence``; projections, batch norm, bias and gate act on coefficients. "softmax" attends
    over all N positions of the low-passed map. Coefficients, bases and norms are at least float32,
    under autocast too. H and W may differ from call to call; a band larger than the map is clipped.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        k: the band: ``int`` (lowest k x k), ``(kh, kw)``, ranges ``((h0, h1), (w0, w1))``, or
            ``None`` for all frequencies. The paper uses 8 and 5.
        similarity: "dot" (``v (k^T q) / N``), "linear_softmax" (``1 + cos``, normalised),
            "linear" (``1 + scale * q.k``, normalised: the first order of softmax) or "softmax".
            The weights of "linear" can sum to zero or less; the sum is kept ``1e-6 * N`` away
            from zero.
        recurrence: rounds with the same weights (the paper: 2).
        inplace: overwrite the input with the result: for inference, where nobody else needs the
            map, and several times faster on a CPU. Refused while autograd records.
        block, qk_channels, value_channels, qkv_bias, norm, scale, zero_init, device, dtype: the
            block's shape, see :class:`fsanet.attention.block.AttentionBlock`.

    Raises:
        InputError: for an invalid band or option; at run time for an input of another shape, or a
            map without any of the band's frequencies.

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
        inplace: bool = False,
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
        self.inplace = inplace

    def forward(self, x: Tensor, *, inplace: bool | None = None) -> Tensor:
        """``(B, C, H, W)`` in any float dtype to the same shape, dtype and memory layout.

        Args:
            x: the map.
            inplace: in place of the layer's own ``inplace``, for this call.
        """
        self.check_input(x)
        inplace = self.inplace if inplace is None else inplace
        if inplace and torch.is_grad_enabled():
            raise InputError(
                "inplace=True overwrites the map, which autograd may need: call the layer under "
                "torch.no_grad() or torch.inference_mode(), or with inplace=False"
            )
        band = self.band.clip(x.shape[-2], x.shape[-1])
        # In half precision, sums over all positions round coarsely, and overflow in float16.
        full = autocast_dtype(x) == basis_dtype(x.dtype)
        if full and self.is_regular(x.shape[-2], x.shape[-1]):
            y = spatial_rounds(self, x)
            return x.copy_(y) if inplace else y
        with full_precision(x):
            basis = Basis.of(x, band)
            residual, coefficients = analyse_with_residual(x, basis.rows, basis.columns)
        return self.add(residual, coefficients, basis, inplace=inplace)

    def is_regular(self, height: int, width: int) -> bool:
        """Whether a map is left to regular attention: nothing is filtered, and that is cheaper.

        With K = N coefficients both project the same number of tokens. Coefficients cost two
        transforms more; "dot" and "linear_softmax" may save by products of N x N in place of d x e.
        Never in an export, which has one route for all sizes.
        """
        if torch.compiler.is_exporting() or not self.band.covers(height, width):
            return False
        n, d, e = height * width, self.query.out_features, self.value.out_features
        transforms = 2 * n * self.channels * (height + width)
        regular = self.recurrence * 2 * n * d * e  # multiply-adds of a round: (v k^T) q
        if self.similarity == "dot":
            coefficients = self.recurrence * min(2 * n * d * e, n * n * (d + e))
        elif self.similarity == "softmax" or n > 2 * d + e:  # computed at positions
            return True
        else:
            coefficients = self.recurrence * n * n * (3 * d + e + n)
        return regular <= transforms + coefficients

    def add(
        self, residual: Tensor, coefficients: Tensor, basis: Basis, *, inplace: bool = False
    ) -> Tensor:
        """Attention over given coefficients, added to a map.

        Args:
            residual: ``(B, C, H, W)``.
            coefficients: ``(B, C, kh, kw)`` of the attention's input.
            basis: of the band.
            inplace: overwrite ``residual`` with the result; not with autograd.

        Returns:
            ``(B, C, H, W)`` in the dtype of ``residual``.
        """
        position_dtype = autocast_dtype(residual)  # softmax runs under autocast, coefficients not
        with full_precision(residual):
            tokens = basis.to_tokens(coefficients)  # (B, K, C)
            if self.similarity == "dot":
                change, constant = dot_rounds(self, tokens, basis)  # (B, K, C), (B, C)
                change = basis.to_plane(change)  # (B, C, kh, kw)
                return synthesise(
                    change,
                    basis.rows,
                    basis.columns,
                    residual=residual,
                    constant=constant,
                    inplace=inplace,
                )
            if self.similarity == "softmax":
                return self._add_over_positions(residual, tokens, basis, position_dtype, inplace)
            if basis.frequencies > 2 * self.query.out_features + self.value.out_features:
                # q, k and v at N positions are cheaper than products of N and K
                return self._add_over_positions(residual, tokens, basis, tokens.dtype, inplace)
            products = linear_rounds(self, tokens, basis)
            return add_row_products(residual, *products, inplace=inplace)

    def _add_over_positions(
        self, residual: Tensor, tokens: Tensor, basis: Basis, dtype: torch.dtype, inplace: bool
    ) -> Tensor:
        """Rounds of attention over queries, keys and values at all N positions, in ``dtype``."""
        y = residual
        for round_ in range(self.recurrence):
            qkv = []
            for layer in (self.query, self.key, self.value):
                c = basis.to_plane(linear(tokens, layer.weight.to(tokens.dtype)))  # (B, ., kh, kw)
                part = synthesise(c, basis.rows, basis.columns).flatten(2)  # (B, ., N)
                if layer.bias is not None:
                    part = part + layer.bias.to(part.dtype)[:, None]
                qkv.append(part.to(dtype))
            q, k, v = qkv
            out = attend(q, k, v, self.similarity, self.scale).unflatten(2, basis.grid)
            out = self.finish_map(out.to(self.query.weight.dtype))  # (B, C, H, W)
            y = y.add_(out.to(y.dtype)) if inplace else y + out.to(y.dtype)
            if round_ + 1 < self.recurrence:
                c = analyse(out.to(tokens.dtype), basis.rows, basis.columns)  # (B, C, kh, kw)
                tokens = tokens + c.flatten(2).mT
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, band={self.band}"
