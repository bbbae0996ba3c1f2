"""Attention layers over feature maps: (B, C, H, W) in, the same out. They import torch alone."""

from fsanet.attention.bands import BandTreatments
from fsanet.attention.block import rename_published_keys
from fsanet.attention.frequency import FrequencySelfAttention
from fsanet.attention.spatial import SpatialSelfAttention

__all__ = [
    "BandTreatments",
    "FrequencySelfAttention",
    "SpatialSelfAttention",
    "rename_published_keys",
]
