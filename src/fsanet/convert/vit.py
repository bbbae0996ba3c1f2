"""timm's ViT attention on low-passed patch tokens.

Sources: ViT (arXiv 2010.11929), section 3.1; FsaNet (arXiv 2211.15595), section IV, for attention
on the low-passed map with no retraining.

Legend: B batch, C channels, H x W grid of patches, N = H*W, P prefix tokens (class, registers),
M keys of the map, h heads, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fsanet.attention.dct import BandLike, full_precision
from fsanet.attention.similarity import Similarity
from fsanet.convert.spectra import TokenSpectrum, points_of
from fsanet.convert.token_attention import Route, TokenAttention, compute_dtype, heads
from fsanet.errors import InputError

__all__ = ["PatchGrid", "VitFrequencyAttention"]


class PatchGrid:
    """Height and width, in patches, of the images that are on their way through a network.

    Hooked onto the patch embedding, it follows images of any size; all attention modules of the
    network share it.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def __call__(self, embedding: Any, arguments: tuple[Any, ...], output: Any) -> None:
        height, width = arguments[0].shape[-2:]
        self.size = embedding.dynamic_feat_size((height, width))


class VitFrequencyAttention(TokenAttention):
    """Stands in for timm's ``Attention``: same call, parameters and ``state_dict``.

    Queries, keys and values of the patches are those of the low-passed patch map; prefix tokens
    give theirs unharmed, and attend to patches as patches attend to them. On route "grid" each of
    the M points stands for N / M patches, so its score is raised by ``log(N / M)`` against those
    of prefix tokens.

    Args:
        attention: the module to take parameters from; they are shared, not copied.
        grid_of: the grid of patches.
        prefix: P, the tokens before the patches.
        k, similarity, route, grid: see :class:`TokenAttention`.
    """

    def __init__(
        self,
        attention: Any,
        *,
        grid_of: PatchGrid,
        prefix: int,
        k: BandLike = 8,
        similarity: Similarity = "softmax",
        route: Route = "tokens",
        grid: int | tuple[int, int] = 16,
    ) -> None:
        super().__init__(k=k, similarity=similarity, scale=attention.scale, route=route, grid=grid)
        self.grid_of, self.prefix = grid_of, prefix
        self.num_heads: int = attention.num_heads
        self.qkv: nn.Linear = attention.qkv
        self.q_norm: nn.Module = attention.q_norm
        self.k_norm: nn.Module = attention.k_norm
        self.attn_drop: nn.Dropout = attention.attn_drop
        self.norm: nn.Module = getattr(attention, "norm", None) or nn.Identity()
        self.gate: nn.Module | None = getattr(attention, "gate", None)
        self.proj: nn.Module = attention.proj
        self.proj_drop: nn.Module = attention.proj_drop

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """``(B, P + N, C)`` to the same shape."""
        if self.route == "grid" and (attn_mask is not None or is_causal):
            raise InputError("route='grid' has other keys than the mask; use route='tokens'")
        height, width = self._grid(x)
        dtype = compute_dtype(x)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        points = (height, width)
        if self.route == "grid":
            points = points_of(self.grid, height, width)
        with full_precision(x):
            spectrum = TokenSpectrum.of(patches, height, width, self.band)
            weights = self.qkv.weight.chunk(3)
            biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
            q, k, v = (
                spectrum.tokens(weight, bias)
                if index == 0 or points == (height, width)
                else spectrum.at_points(weight, bias, points)
                for index, (weight, bias) in enumerate(zip(weights, biases, strict=True))
            )
        q, k, v = (
            heads(
                torch.cat([linear(prefix, weight, bias).to(dtype), t.to(dtype)], 1), self.num_heads
            )
            for t, weight, bias in zip((q, k, v), weights, biases, strict=True)
        )  # (B, h, P + N, d), twice (B, h, P + M, d)
        q, k = self.q_norm(q).to(dtype), self.k_norm(k).to(dtype)
        mask = attn_mask
        if self.prefix and points != (height, width):
            share = math.log(height * width / (points[0] * points[1]))
            mask = q.new_zeros(k.shape[2])
            mask[self.prefix :] = share
            mask = mask.expand(1, 1, q.shape[2], -1)
        dropout = self.attn_drop.p if self.training else 0.0
        out = self.attend(q, k, v, mask=mask, causal=is_causal, dropout=dropout)  # (B, P + N, C)
        out = self.norm(out.to(x.dtype))
        if self.gate is not None:
            gate = self._gate(prefix, spectrum, x)
            out = out * gate
        return self.proj_drop(self.proj(out))

    def _gate(self, prefix: Tensor, spectrum: TokenSpectrum, x: Tensor) -> Tensor:
        """The element-wise gate, of the same low-passed input as everything else here."""
        gate: Any = self.gate
        with full_precision(x):
            patches = spectrum.tokens(gate.weight, gate.bias).to(x.dtype)
        return torch.cat([gate(prefix).to(x.dtype), patches], 1).sigmoid()

    def _grid(self, x: Tensor) -> tuple[int, int]:
        size = self.grid_of.size
        count = x.shape[1] - self.prefix
        if size is None:
            raise InputError("the grid of the patches is not known before the network ran")
        if size[0] * size[1] != count:
            raise InputError(
                f"{count} patch tokens after {self.prefix} prefix tokens are no "
                f"{size[0]}x{size[1]} grid; give token_grid and prefix_tokens as they are, and "
                "train without patch dropout"
            )
        return size

    def input_map(self, x: Tensor, *rest: Any, **unused: Any) -> Tensor:
        """The map that is low-passed, of the arguments of a call: ``(B, C, H, W)``."""
        return x[:, self.prefix :].mT.unflatten(2, self._grid(x))
