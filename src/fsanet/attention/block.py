"""The parameters of an attention block, shared by the frequency and the spatial layer.

Two published shapes (docs/method.md):

* "nonlocal": q, k, v with C/2 channels, output projection and batch norm, no gate;
* "ccnet": q, k with C/8 channels, v with C, a learned bias per channel and a scalar gate.

Legend: B batch, C channels, H x W grid, K' coefficients, d query/key channels, e value channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsanet.attention.dct import Basis
from fsanet.attention.norm import Statistics, batch_norm_affine
from fsanet.attention.similarity import SIMILARITIES, Similarity
from fsanet.errors import InputError, check_range

__all__ = ["PUBLISHED_KEYS", "AttentionBlock", "Block", "project", "rename_published_keys"]

Block = Literal["nonlocal", "ccnet"]

PUBLISHED_KEYS: dict[str, dict[str, str]] = {
    "ccnet": {
        "query_conv": "query",
        "key_conv": "key",
        "value_conv": "value",
        "out_bias": "bias",
        "gamma": "gate",
    },
    "nonlocal": {
        "theta.conv": "query",
        "phi.conv": "key",
        "g.conv": "value",
        "conv_out.conv": "out",
        "conv_out.bn": "norm",
    },
}


def rename_published_keys(state_dict: Mapping[str, Tensor], block: Block) -> dict[str, Tensor]:
    """A published block's state_dict under this library's names; the tensors stay the same.

    Args:
        state_dict: keys as published, without a prefix.
        block: shape of the block that the keys come from.

    Raises:
        InputError: some keys belong to no published block of that shape; it names them.

    >>> rename_published_keys({"gamma": torch.zeros(1)}, "ccnet")
    {'gate': tensor([0.])}
    """
    names = PUBLISHED_KEYS[block]
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        stem = next((s for s in names if key == s or key.startswith(s + ".")), None)
        if stem is None:
            unknown.append(key)
        else:
            renamed[names[stem] + key[len(stem) :]] = value
    if unknown:
        raise InputError(f"not keys of a published {block} block: {', '.join(sorted(unknown))}")
    return renamed


class AttentionBlock(nn.Module):
    """Projections, batch norm, bias and gate of one attention block.

    The base of ``FrequencySelfAttention`` and ``SpatialSelfAttention``, which compute
    ``y = x + gate * (norm(Wo a) + bias)`` from attended values a. Both have this ``state_dict``,
    so weights move between them.

    Args:
        channels: C.
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds, all with the same weights.
        block: "nonlocal" or "ccnet", the published shapes.
        qk_channels: channels of queries and keys; by default C/2 ("nonlocal"), C/8 ("ccnet").
        value_channels: channels of values; by default C/2 ("nonlocal"). Always C for "ccnet",
            which has no output projection.
        qkv_bias: learned biases on queries, keys and values (MMSegmentation's own non-local
            networks have them; the paper's blocks do not).
        norm: batch norm after the output projection ("nonlocal" only).
        scale: factor on ``q.k`` for "linear" and "softmax"; by default ``1 / sqrt(qk_channels)``.
        zero_init: start as the identity (batch norm weight, projection or gate at zero), so that
            the block can be inserted into a trained network. With False it acts from the start.
        device, dtype: of the parameters.

    Raises:
        InputError: for a size below 1 or an unknown option.
    """

    def __init__(
        self,
        channels: int,
        *,
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
        super().__init__()
        if similarity not in SIMILARITIES:
            raise InputError(f"similarity={similarity!r}: use one of {', '.join(SIMILARITIES)}")
        if block not in get_args(Block):
            raise InputError(f"block={block!r}: use one of {', '.join(get_args(Block))}")
        check_range("channels", channels, 1, 1_000_000)
        check_range("recurrence", recurrence, 1, 100)  # the paper: 2; each takes its time
        # The floors of 2 and 1 are the published ones.
        qk_default = max(channels // 8, 2) if block == "ccnet" else max(channels // 2, 1)
        inner = qk_default if qk_channels is None else qk_channels
        if block == "ccnet":
            if value_channels not in (None, channels):
                raise InputError(
                    f'value_channels={value_channels}: block="ccnet" has no output projection, so '
                    f'its values have {channels} channels like the map; use block="nonlocal"'
                )
            values = channels
        else:
            values = max(channels // 2, 1) if value_channels is None else value_channels
        if inner < 1 or values < 1:
            raise InputError(f"qk_channels={inner}, value_channels={values}: give at least 1")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.block, self.recurrence = channels, block, recurrence
        self.similarity: Similarity = similarity
        self.scale = 1 / math.sqrt(inner) if scale is None else scale
        self.query = nn.Linear(channels, inner, bias=qkv_bias, **where)
        self.key = nn.Linear(channels, inner, bias=qkv_bias, **where)
        self.value = nn.Linear(channels, values, bias=qkv_bias, **where)
        self.out: nn.Linear | None = None
        self.norm: _BatchNorm | None = None
        start = 0.0 if zero_init else 1.0
        if block == "nonlocal":
            self.out = nn.Linear(values, channels, bias=False, **where)
            if norm:
                self.norm = nn.BatchNorm2d(channels, **where)
                nn.init.constant_(self.norm.weight, start)
            elif zero_init:
                nn.init.zeros_(self.out.weight)
            self.register_parameter("bias", None)
            self.register_parameter("gate", None)
        else:
            self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
            self.gate = nn.Parameter(torch.full((1,), start, device=device, dtype=dtype))

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.query.bias is not None

    def check_input(self, x: Tensor) -> None:
        """Raise an InputError unless ``x`` is a floating-point map ``(B, C, H, W)``."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"expected a feature map (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise InputError(f"expected a floating-point feature map, got {x.dtype}")

    def output_affine(
        self, dtype: torch.dtype, statistics: Statistics | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Batch norm, bias and gate as one affine map, ``out * scale + shift``.

        Args:
            dtype: of the computation.
            statistics: of ``out``, see :func:`batch_norm_affine`.

        Returns:
            ``scale`` and ``shift``, each ``(C,)`` or ``(1,)``, or None where there is none.
        """
        scale = shift = None
        if self.norm is not None:
            scale, shift = batch_norm_affine(self.norm, dtype, statistics)
        if self.bias is not None:
            bias = self.bias.to(dtype)
            shift = bias if shift is None else shift + bias
        if self.gate is not None:
            gate = self.gate.to(dtype)
            scale = gate if scale is None else scale * gate
            shift = None if shift is None else shift * gate
        return scale, shift

    def finish_map(self, attended: Tensor) -> Tensor:
        """Output projection, batch norm, bias and gate on a map of attended values.

        Args:
            attended: ``(B, e, H, W)``.

        Returns:
            ``(B, C, H, W)``, the change of the input.
        """
        out = attended
        if self.out is not None:
            out = nn.functional.conv2d(out, self.out.weight[:, :, None, None])  # (B, C, H, W)
        if self.norm is not None:
            out = self.norm(out)
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        return out if self.gate is None else out * self.gate

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, similarity={self.similarity!r}, recurrence={self.recurrence}, "
            f"block={self.block!r}"
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Published blocks hold 1x1 convolutions, (out, in, 1[, 1]), and a bias (1, C, 1).
        for name in ("query.weight", "key.weight", "value.weight", "out.weight"):
            weight = state_dict.get(prefix + name)
            if weight is not None and weight.ndim > 2 and weight[0, 0].numel() == 1:
                state_dict[prefix + name] = weight.flatten(1)
        bias = state_dict.get(prefix + "bias")
        if bias is not None and bias.ndim == 3 and bias.shape[0] == bias.shape[2] == 1:
            state_dict[prefix + "bias"] = bias.flatten()
        super()._load_from_state_dict(state_dict, prefix, *args)


def project(layer: nn.Linear, s: Tensor, basis: Basis) -> Tensor:
    """A 1x1 convolution of the map, on its coefficients.

    Args:
        layer: weight ``(c, C)``; its bias is a constant map, so it changes DC alone.
        s: ``(B, K', C)``.
        basis: of the coefficients; it has to contain the constant if there is a bias.

    Returns:
        ``(B, K', c)``.
    """
    out = nn.functional.linear(s, layer.weight.to(s.dtype))
    return out if layer.bias is None else out + basis.constant(layer.bias.to(s.dtype))
