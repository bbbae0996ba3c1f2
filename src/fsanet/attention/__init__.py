"""Attention layers over feature maps, ``(B, C, H, W)`` to the same shape. They need torch alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsanet.attention.bands import BandTreatments
from fsanet.attention.block import rename_published_keys
from fsanet.attention.dct import BandLike
from fsanet.attention.frequency import FrequencySelfAttention
from fsanet.attention.rows import attention_row
from fsanet.attention.spatial import SpatialSelfAttention
from fsanet.errors import InputError

__all__ = [
    "AttentionKind",
    "BandTreatments",
    "FrequencySelfAttention",
    "SpatialSelfAttention",
    "attend",
    "attention_row",
    "make_attention",
    "rename_published_keys",
]

AttentionKind = Literal["frequency", "spatial"]


def make_attention(
    kind: AttentionKind | None, channels: int, *, k: BandLike = 8, **options: Any
) -> nn.Module:
    """The attention layer that a network asks for by name.

    Args:
        kind: "frequency", "spatial" (regular attention), or None for no attention.
        channels: channels of the map.
        k: band of frequencies ("frequency" only, see :class:`FrequencySelfAttention`).
        **options: further arguments, see :class:`fsanet.attention.block.AttentionBlock`.

    Raises:
        InputError: for another kind, or an option outside its range.

    >>> make_attention("spatial", 16, recurrence=2).out
    Linear(in_features=8, out_features=16, bias=False)
    """
    if kind == "frequency":
        return FrequencySelfAttention(channels, k=k, **options)
    if kind == "spatial":
        return SpatialSelfAttention(channels, **options)
    if kind is None:
        return nn.Identity()
    raise InputError(f'attention={kind!r}: use "frequency", "spatial" or None')


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    """Apply an attention layer to a map that only the caller holds: inference overwrites it.

    Args:
        attention: what :func:`make_attention` returns.
        x: ``(B, C, H, W)``.

    Returns:
        ``(B, C, H, W)``, in the memory of ``x`` where the layer can write there.
    """
    only_infers = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if only_infers and isinstance(attention, FrequencySelfAttention):
        return attention(x, inplace=True)
    return attention(x)
