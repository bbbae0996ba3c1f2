"""Attention layers over feature maps, ``(B, C, H, W)`` to the same shape. They need torch alone."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

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
