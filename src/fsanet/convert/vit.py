"""Self-attention over a grid of tokens, low-passed: ViTs of timm and transformers, and PyTorch's.

Sources: ViT (arXiv 2010.11929), section 3.1; FsaNet (arXiv 2211.15595), section IV, for attention
on the low-passed map without retraining. The low-pass acts on the input of the attention, so
before the rotation of RoPE, which depends on the position and does not commute with it.

Legend: B batch, C channels, H x W grid of patches, N = H*W, P prefix tokens (class, registers,
queries), M keys of the map, h heads, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fsanet.attention.dct import autocast_dtype, full_precision
from fsanet.convert.rotation import Rotation
from fsanet.convert.token_attention import TokenAttention, split_heads
from fsanet.convert.token_spectrum import TokenSpectrum
from fsanet.errors import InputError

__all__ = [
    "MultiheadFrequencyAttention",
    "PatchGrid",
    "TimmFrequencyAttention",
    "TransformersFrequencyAttention",
    "VitFrequencyAttention",
]

_LINEARS = ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value", "gate")


class PatchGrid:
    """Height and width, in patches, of the images currently passing through a network.

    As a forward hook of the module that makes the map, such as the convolution of a patch
    embedding, it follows images of any size; all attention modules of the network share it.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def __call__(self, source: nn.Module, arguments: Any, output: Tensor) -> None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise InputError(
                f"token_grid: the output of {type(source).__name__} is no map (B, C, H, W); name "
                "the module whose output is flattened to tokens"
            )
        self.size = (output.shape[2], output.shape[3])


class VitFrequencyAttention(TokenAttention):
    """Attention of the prefix tokens and the low-passed map, with the parameters of a module.

    Queries, keys and values of the patches come from the low-passed patch map, those of prefix
    tokens from the tokens themselves. On route "grid" each of the M points stands for N / M
    patches, so its score is raised by ``log(N / M)`` relative to those of prefix tokens. A
    subclass gives it the call of the module that it replaces.

    Args:
        attention: the module to replace; its parameters are shared, not copied, and keep their
            names.
        patch_grid: the grid of patches.
        prefix: P, the number of tokens before the patches; None: all but the last N.
        **options: k, similarity, route and grid of :class:`TokenAttention`.

    Raises:
        InputError: a projection that is no plain linear layer, such as a LoRA adapter.
    """

    tokens_name = "x"  # of the first argument of a call
    batch_first = True

    def __init__(
        self, attention: Any, *, patch_grid: PatchGrid, prefix: int | None, **options: Any
    ) -> None:
        for name in _LINEARS:
            found = attention._modules.get(name)
            if found is not None and type(found) is not nn.Linear:
                raise InputError(
                    f"{name}: expected nn.Linear, got {type(found).__name__}; merge adapters and "
                    "convert before quantising, or exclude it with match"
                )
        heads: int = _first(attention, "num_heads", "num_attention_heads")
        head_channels = _projections(attention)[0][0].shape[0] // heads
        scale = _first(attention, "scale", "scaling", default=head_channels**-0.5)
        super().__init__(scale, **options)
        self.patch_grid, self.prefix, self.num_heads = patch_grid, prefix, heads
        self.head_channels = head_channels
        drop: Any = _first(attention, "attn_drop", "attention_dropout", "dropout_prob", "dropout")
        self.attention_dropout: float = drop.p if isinstance(drop, nn.Dropout) else drop
        self._parameters.update(attention._parameters)
        self._buffers.update(attention._buffers)
        self._modules.update(attention._modules)
        self._non_persistent_buffers_set |= attention._non_persistent_buffers_set

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Attention over tokens ``(B, P + N, C)``, to the same shape.

        Args:
            query, key, value: inputs of the three projections; the same tensor is analysed once.
            rotation: of the N queries and keys of the map.
            mask: added to the scores, or True where they count; broadcast to (B, h, P + N, P + N).
            causal: whether tokens attend to earlier ones only.

        Raises:
            InputError: a mask on route "grid", or tokens that do not form the grid.
        """
        if self.route == "grid" and (mask is not None or causal):
            raise InputError("route='grid' has other keys than the mask; use route='tokens'")
        height, width, prefix = self._layout(query)
        points = self.key_points(height, width)
        dtype = autocast_dtype(query)
        inputs, projected = (query, key, value), []
        spectra: list[TokenSpectrum] = []
        for x, (weight, bias), where in zip(
            inputs, _projections(self), (None, points, points), strict=True
        ):
            same = [s for other, s in zip(inputs, spectra, strict=False) if other is x]
            with full_precision(x):
                spectra += same[:1] or [TokenSpectrum.of(x[:, prefix:], height, width, self.band)]
                tokens = spectra[-1].project(weight, bias, where).to(dtype)  # (B, N or M, h*d)
            tokens = torch.cat([linear(x[:, :prefix], weight, bias).to(dtype), tokens], 1)
            projected.append(split_heads(tokens, weight.shape[0] // self.head_channels))
        q, k, v = projected  # (B, h, P + N, d), twice (B, h, P + M, d)
        q, k = _apply(self, "q_norm", q).to(dtype), _apply(self, "k_norm", k).to(dtype)
        if rotation is not None:
            q = torch.cat([q[:, :, :prefix], rotation.turn(q[:, :, prefix:])], 2)
            if points != (height, width):
                rotation = rotation.at((height, width), points)
            k = torch.cat([k[:, :, :prefix], rotation.turn(k[:, :, prefix:])], 2)
        if k.shape[1] < self.num_heads:  # several heads of queries share one of keys
            k, v = (t.repeat_interleave(self.num_heads // t.shape[1], 1) for t in (k, v))
        if prefix and points != (height, width):
            mask = q.new_zeros(k.shape[2])  # (P + M,)
            mask[prefix:] = math.log(height * width / (points[0] * points[1]))
            mask = mask.expand(1, 1, q.shape[2], -1)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(dtype)
        dropout = self.attention_dropout if self.training else 0.0
        out = self.attend(q, k, v, mask=mask, causal=causal, dropout=dropout)  # (B, P + N, h*d)
        out = _apply(self, "norm", out.to(query.dtype))
        gate: nn.Linear | None = getattr(self, "gate", None)
        if gate is not None:  # element-wise, from the same low-passed input
            with full_precision(query):
                opened = spectra[0].project(gate.weight, gate.bias).to(query.dtype)
            out = out * torch.cat([gate(query[:, :prefix]).to(query.dtype), opened], 1).sigmoid()
        for name in ("proj", "o_proj", "out_proj", "proj_drop"):
            out = _apply(self, name, out)
        return out

    def _layout(self, tokens: Tensor) -> tuple[int, int, int]:
        """H, W and P of tokens ``(B, P + N, C)``."""
        if self.patch_grid.size is None:
            raise InputError("the patch grid is unknown before the network's first forward pass")
        height, width = self.patch_grid.size
        count = tokens.shape[-2]
        prefix = max(count - height * width, 0) if self.prefix is None else self.prefix
        if count - prefix != height * width:
            raise InputError(
                f"{count - prefix} patch tokens after {prefix} prefix tokens do not form a "
                f"{height}x{width} grid; correct token_grid and prefix_tokens, exclude attention "
                "over other tokens with match, and train without patch dropout"
            )
        return height, width, prefix

    def input_map(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The map to be low-passed, ``(B, C, H, W)``, from the arguments of a call."""
        tokens = arguments[0] if arguments else keywords[self.tokens_name]
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        height, width, prefix = self._layout(tokens)
        return tokens[:, prefix:].mT.unflatten(2, (height, width))


class TimmFrequencyAttention(VitFrequencyAttention):
    """Replaces timm's ``Attention``, ``AttentionRope`` and ``EvaAttention``."""

    def __init__(self, attention: Any, **options: Any) -> None:
        super().__init__(attention, **options)
        self.rotate_half: bool = getattr(attention, "rotate_half", False)

    def forward(
        self,
        x: Tensor,
        *,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """``(B, P + N, C)`` to the same shape; ``rope`` is (..., N, 2d), sines before cosines."""
        rotation = None
        if rope is not None:
            sin, cos = rope.chunk(2, -1)
            rotation = Rotation(cos, sin, self.rotate_half)
        return self.mix(x, x, x, rotation=rotation, mask=attn_mask, causal=is_causal)


class TransformersFrequencyAttention(VitFrequencyAttention):
    """Replaces the attention of transformers' ViT, DeiT, DINOv2, DINOv3 and EoMT."""

    tokens_name = "hidden_states"

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """``(B, P + N, C)`` to the same shape, and None in place of attention weights."""
        rotation = (
            None if position_embeddings is None else Rotation(*position_embeddings, half=True)
        )
        x = hidden_states
        return self.mix(x, x, x, rotation=rotation, mask=attention_mask), None


class MultiheadFrequencyAttention(VitFrequencyAttention):
    """Replaces ``nn.MultiheadAttention`` where it is self-attention over a grid.

    Queries, keys and values may come from different maps of one size: a DETR encoder adds its
    position embedding to two of them.
    """

    # nn.TransformerEncoderLayer reads this, and calls the module only if it is false: its fused
    # kernel would compute the original attention.
    _qkv_same_embed_dim = False
    tokens_name = "query"

    def __init__(self, attention: nn.MultiheadAttention, **options: Any) -> None:
        if attention.in_proj_weight is None:
            raise InputError("it has keys and values of other widths; exclude it with match")
        if attention.bias_k is not None or attention.add_zero_attn:
            raise InputError("it adds a key (add_bias_kv, add_zero_attn); exclude it with match")
        super().__init__(attention, **options)
        self.batch_first, self.embed_dim = attention.batch_first, attention.embed_dim

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Tokens in the layout of the original, and None in place of attention weights.

        ``is_causal`` is not read, because it comes with the mask that it describes.

        Raises:
            InputError: attention of one set of tokens to another, or see `mix`.
        """
        if not query.shape == key.shape == value.shape:
            raise InputError(
                "attention of one set of tokens to another has no grid to low-pass; exclude it "
                "with match"
            )
        if not self.batch_first:
            q = query.transpose(0, 1)
            k = q if key is query else key.transpose(0, 1)
            v = q if value is query else k if value is key else value.transpose(0, 1)
            query, key, value = q, k, v
        mask = None
        if attn_mask is not None:  # (N, N) or (B*h, N, N)
            mask = _added(attn_mask, query.dtype)
            mask = mask if mask.ndim == 2 else mask.unflatten(0, (-1, self.num_heads))
        if key_padding_mask is not None:  # (B, N)
            padding = _added(key_padding_mask, query.dtype)[:, None, None]
            mask = padding if mask is None else mask + padding
        out = self.mix(query, key, value, mask=mask)
        return out if self.batch_first else out.transpose(0, 1), None


def _projections(attention: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values, by the names that libraries give them."""
    weight, bias = (getattr(attention, f"in_proj_{part}", None) for part in ("weight", "bias"))
    fused = getattr(attention, "qkv", None)
    if fused is not None:
        weight, bias = fused.weight, fused.bias
        if getattr(attention, "q_bias", None) is not None:  # EVA: biases apart, none of the keys
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    if weight is not None:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        return list(zip(weight.chunk(3), biases, strict=True))
    linears = [
        _first(attention, *names)
        for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    ]
    return [(one.weight, one.bias) for one in linears]


def _first(module: Any, *names: str, default: Any = None) -> Any:
    """The first of these attributes that a module has and that is not None."""
    found = (getattr(module, name, None) for name in names)
    return next((one for one in found if one is not None), default)


def _apply(module: nn.Module, name: str, x: Tensor) -> Tensor:
    """Apply the child of this name to ``x``, if there is one."""
    child = module._modules.get(name)
    return x if child is None else child(x)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask of PyTorch, True where a score does not count, to one that is added."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
