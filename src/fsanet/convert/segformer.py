"""The attention of transformers' SegFormer on low-passed tokens.

Sources: SegFormer (arXiv 2105.15203), section 3.1, for the attention with reduced keys; FsaNet
(arXiv 2211.15595), section IV, for attention on the low-passed map without retraining.

Legend: B batch, C channels, h heads, d channels of a head, H x W grid, N = H*W, r reduction,
M keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fsanet.attention.dct import autocast_dtype, full_precision
from fsanet.convert.token_attention import TokenAttention, split_heads
from fsanet.convert.token_spectrum import TokenSpectrum
from fsanet.errors import InputError

__all__ = ["SegformerFrequencyAttention"]


class SegformerFrequencyAttention(TokenAttention):
    """Replaces ``SegformerAttention``: same call, parameters and ``state_dict``.

    The input of the attention is low-passed, the residual around it is not. Queries, and the keys
    and values of a stage without reduction, are linear in the coefficients. The strided
    convolution of a reduction works on coefficients where that is cheaper; the layer norm after it
    is not linear and works on the reduced tokens.

    Args:
        attention: the module to replace; its parameters are shared, not copied.
        **options: k, similarity, route and grid of :class:`TokenAttention`. On route "grid" a
            stage with reduction evaluates its r x r patches at the points of the grid; with
            (H // r, W // r) or more points both routes are equal.
    """

    def __init__(self, attention: Any, **options: Any) -> None:
        super().__init__(attention.scaling, **options)
        self.num_attention_heads: int = attention.num_attention_heads
        self.attention_dropout: float = attention.attention_dropout
        self.q_proj: nn.Linear = attention.q_proj
        self.k_proj: nn.Linear = attention.k_proj
        self.v_proj: nn.Linear = attention.v_proj
        self.o_proj: nn.Linear = attention.o_proj
        self.sequence_reduction_ratio: int = attention.sequence_reduction_ratio
        if self.sequence_reduction_ratio > 1:
            self.sequence_reduction: Any = attention.sequence_reduction

    def forward(
        self,
        hidden_states: Tensor,
        height: int,
        width: int,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """``(B, N, C)`` to the same shape, and None in place of attention weights."""
        if attention_mask is not None:
            raise InputError("frequency attention over a map takes no attention mask")
        dtype = autocast_dtype(hidden_states)
        with full_precision(hidden_states):
            spectrum = TokenSpectrum.of(hidden_states, height, width, self.band)
            q = spectrum.project(self.q_proj.weight, self.q_proj.bias)  # (B, N, C)
            if self.sequence_reduction_ratio == 1:
                points = self.key_points(height, width)
                k = spectrum.project(self.k_proj.weight, self.k_proj.bias, points)  # (B, M, C)
                v = spectrum.project(self.v_proj.weight, self.v_proj.bias, points)  # (B, M, C)
            else:
                reduced = self._reduce(spectrum).to(hidden_states.dtype)  # (B, M, C)
        if self.sequence_reduction_ratio > 1:
            reduced = self.sequence_reduction.layer_norm(reduced)
            k, v = self.k_proj(reduced), self.v_proj(reduced)
        q, k, v = (split_heads(t.to(dtype), self.num_attention_heads) for t in (q, k, v))
        dropout = self.attention_dropout if self.training else 0.0
        out = self.attend(q, k, v, dropout=dropout)  # (B, N, C)
        return self.o_proj(out.to(hidden_states.dtype)), None

    def _reduce(self, spectrum: TokenSpectrum) -> Tensor:
        """The strided convolution of the low-passed map: (B, M, C)."""
        convolution: nn.Conv2d = self.sequence_reduction.sequence_reduction
        r, (height, width) = self.sequence_reduction_ratio, spectrum.size
        every = (height // r, width // r)
        points = self.key_points(*every)
        kept = spectrum.rows.shape[0] * spectrum.columns.shape[0]
        if points != every or kept * r * r <= height * width:
            return spectrum.convolve_patches(convolution, points)
        plane = spectrum.tokens().unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, C, H, W)
        bias = None if convolution.bias is None else convolution.bias.to(plane.dtype)
        weight = convolution.weight.to(plane.dtype)
        out = nn.functional.conv2d(plane, weight, bias, stride=r)  # (B, C, H//r, W//r)
        return out.flatten(2).mT

    def input_map(
        self, hidden_states: Tensor, height: int, width: int, *rest: Any, **unused: Any
    ) -> Tensor:
        """The map to be low-passed, ``(B, C, H, W)``, from the arguments of a call."""
        return hidden_states.mT.unflatten(2, (height, width))
