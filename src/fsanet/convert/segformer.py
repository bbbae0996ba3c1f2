"""SegFormer's attention (transformers) on low-passed tokens.

Sources: SegFormer (arXiv 2105.15203), section 3.1, for the attention with reduced keys; FsaNet
(arXiv 2211.15595), section IV, for attention on the low-passed map with no retraining.

Legend: B batch, C channels, H x W grid, N = H*W, r reduction, M keys.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fsanet.attention.dct import BandLike, full_precision
from fsanet.attention.similarity import Similarity
from fsanet.convert.spectra import TokenSpectrum, evaluate, evaluate_patches, points_of
from fsanet.convert.token_attention import Route, TokenAttention, compute_dtype, heads
from fsanet.errors import InputError

__all__ = ["SegformerFrequencyAttention"]


class SegformerFrequencyAttention(TokenAttention):
    """Stands in for ``SegformerAttention``: same call, parameters and ``state_dict``.

    The attention's input is low-passed (the residual outside is not), and stays coefficients as
    long as it can: queries, and keys and values of a stage without reduction, are linear maps of
    them. The strided convolution of a reduction works on coefficients where that is cheaper; the
    layer norm after it is not linear, and works on the reduced tokens.

    Args:
        attention: the module to take parameters from; they are shared, not copied.
        k, similarity, route, grid: see :class:`TokenAttention`. On route "grid" a stage with
            reduction evaluates its r x r patches at the points of the grid; from
            (H // r, W // r) points on both routes are the same.
    """

    def __init__(
        self,
        attention: Any,
        *,
        k: BandLike = 8,
        similarity: Similarity = "softmax",
        route: Route = "tokens",
        grid: int | tuple[int, int] = 16,
    ) -> None:
        super().__init__(
            k=k, similarity=similarity, scale=attention.scaling, route=route, grid=grid
        )
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
        """``(B, N, C)`` to the same shape; no attention weights are returned (None)."""
        if attention_mask is not None:
            raise InputError("frequency attention over a map takes no attention mask")
        dtype, count = compute_dtype(hidden_states), self.num_attention_heads
        with full_precision(hidden_states):
            spectrum = TokenSpectrum.of(hidden_states, height, width, self.band)
            q = spectrum.tokens(self.q_proj.weight, self.q_proj.bias)  # (B, N, C)
            if self.sequence_reduction_ratio == 1:
                points = (height, width)
                if self.route == "grid":
                    points = points_of(self.grid, height, width)
                k, v = (
                    spectrum.tokens(linear.weight, linear.bias)
                    if points == (height, width)
                    else spectrum.at_points(linear.weight, linear.bias, points)  # (B, M, C)
                    for linear in (self.k_proj, self.v_proj)
                )
            else:
                reduced = self._reduced(spectrum).to(hidden_states.dtype)
        if self.sequence_reduction_ratio > 1:
            reduced = self.sequence_reduction.layer_norm(reduced)  # (B, M, C)
            k, v = self.k_proj(reduced), self.v_proj(reduced)
        q, k, v = (heads(t.to(dtype), count) for t in (q, k, v))  # (B, h, ., d)
        dropout = self.attention_dropout if self.training else 0.0
        out = self.attend(q, k, v, dropout=dropout)  # (B, N, C)
        return self.o_proj(out.to(hidden_states.dtype)), None

    def _reduced(self, spectrum: TokenSpectrum) -> Tensor:
        """The strided convolution of the low-passed map: (B, M, C)."""
        convolution: nn.Conv2d = self.sequence_reduction.sequence_reduction
        r = self.sequence_reduction_ratio
        height, width = spectrum.rows.shape[1], spectrum.columns.shape[1]
        points = every = (height // r, width // r)
        if self.route == "grid":
            points = points_of(self.grid, *every)
        size = spectrum.rows.shape[0] * spectrum.columns.shape[0]
        if points != every or size * r * r <= height * width:
            return evaluate_patches(spectrum, convolution, points)
        tokens = evaluate(spectrum.values, spectrum.rows, spectrum.columns)  # (B, N, C)
        plane = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (B, C, H, W)
        bias = None if convolution.bias is None else convolution.bias.to(plane.dtype)
        weight = convolution.weight.to(plane.dtype)
        out = nn.functional.conv2d(plane, weight, bias, stride=r)  # (B, C, H//r, W//r)
        return out.flatten(2).mT

    def input_map(
        self, hidden_states: Tensor, height: int, width: int, *rest: Any, **unused: Any
    ) -> Tensor:
        """The map that is low-passed, of the arguments of a call: ``(B, C, H, W)``."""
        return hidden_states.mT.unflatten(2, (height, width))
