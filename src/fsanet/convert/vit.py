"""The attention of timm's ViT on low-passed patch tokens.

Sources: ViT (arXiv 2010.11929), section 3.1; FsaNet (arXiv 2211.15595), section IV, for attention
on the low-passed map without retraining.

Legend: B batch, C channels, H x W grid of patches, N = H*W, P prefix tokens (class, registers),
M keys of the map, h heads, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fsanet.attention.dct import autocast_dtype, full_precision
from fsanet.convert.token_attention import TokenAttention, split_heads
from fsanet.convert.token_spectrum import TokenSpectrum
from fsanet.errors import InputError

__all__ = ["PatchGrid", "VitFrequencyAttention"]


class PatchGrid:
    """Height and width, in patches, of the images currently passing through a network.

    As a forward hook of the patch embedding it follows images of any size; all attention modules
    of the network share it.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def __call__(self, embedding: Any, arguments: tuple[Any, ...], output: Any) -> None:
        height, width = arguments[0].shape[-2:]
        self.size = embedding.dynamic_feat_size((height, width))


class VitFrequencyAttention(TokenAttention):
    """Replaces timm's ``Attention``: same call, parameters and ``state_dict``.

    Queries, keys and values of the patches come from the low-passed patch map, those of prefix
    tokens from the tokens themselves. On route "grid" each of the M points stands for N / M
    patches, so its score is raised by ``log(N / M)`` relative to those of prefix tokens.

    Args:
        attention: the module to replace; its parameters are shared, not copied.
        patch_grid: the grid of patches.
        prefix: P, the number of tokens before the patches.
        **options: k, similarity, route and grid of :class:`TokenAttention`.
    """

    def __init__(
        self, attention: Any, *, patch_grid: PatchGrid, prefix: int, **options: Any
    ) -> None:
        super().__init__(attention.scale, **options)
        self.patch_grid, self.prefix = patch_grid, prefix
        self.num_heads: int = attention.num_heads
        self.qkv: nn.Linear = attention.qkv
        self.q_norm: nn.Module = attention.q_norm
        self.k_norm: nn.Module = attention.k_norm
        self.attn_drop: nn.Dropout = attention.attn_drop
        self.norm: nn.Module = getattr(attention, "norm", None) or nn.Identity()
        self.gate: Any = getattr(attention, "gate", None)
        self.proj: nn.Module = attention.proj
        self.proj_drop: nn.Module = attention.proj_drop

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """``(B, P + N, C)`` to the same shape."""
        if self.route == "grid" and (attn_mask is not None or is_causal):
            raise InputError("route='grid' has other keys than the mask; use route='tokens'")
        height, width = self._grid_size(x)
        points = self.key_points(height, width)
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        dtype = autocast_dtype(x)
        weights = self.qkv.weight.chunk(3)
        biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
        with full_precision(x):
            spectrum = TokenSpectrum.of(patches, height, width, self.band)
            evaluated = [
                spectrum.project(weight, bias, where).to(dtype)
                for weight, bias, where in zip(weights, biases, (None, points, points), strict=True)
            ]
        q, k, v = (
            split_heads(
                torch.cat([linear(prefix, weight, bias).to(dtype), tokens], 1), self.num_heads
            )
            for tokens, weight, bias in zip(evaluated, weights, biases, strict=True)
        )  # (B, h, P + N, d), twice (B, h, P + M, d)
        q, k = self.q_norm(q).to(dtype), self.k_norm(k).to(dtype)
        mask = attn_mask
        if self.prefix and points != (height, width):
            mask = q.new_zeros(k.shape[2])  # (P + M,)
            mask[self.prefix :] = math.log(height * width / (points[0] * points[1]))
            mask = mask.expand(1, 1, q.shape[2], -1)
        dropout = self.attn_drop.p if self.training else 0.0
        out = self.attend(q, k, v, mask=mask, causal=is_causal, dropout=dropout)  # (B, P + N, C)
        out = self.norm(out.to(x.dtype))
        if self.gate is not None:  # element-wise, from the same low-passed input
            with full_precision(x):
                gate = spectrum.project(self.gate.weight, self.gate.bias).to(x.dtype)
            out = out * torch.cat([self.gate(prefix).to(x.dtype), gate], 1).sigmoid()
        return self.proj_drop(self.proj(out))

    def _grid_size(self, x: Tensor) -> tuple[int, int]:
        size = self.patch_grid.size
        count = x.shape[1] - self.prefix
        if size is None:
            raise InputError("the patch grid is unknown before the network's first forward pass")
        if size[0] * size[1] != count:
            raise InputError(
                f"{count} patch tokens after {self.prefix} prefix tokens do not form a "
                f"{size[0]}x{size[1]} grid; correct token_grid and prefix_tokens, and train "
                "without patch dropout"
            )
        return size

    def input_map(self, x: Tensor, *rest: Any, **unused: Any) -> Tensor:
        """The map to be low-passed, ``(B, C, H, W)``, from the arguments of a call."""
        return x[:, self.prefix :].mT.unflatten(2, self._grid_size(x))
