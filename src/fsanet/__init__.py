"""Frequency self-attention for dense prediction (FsaNet, arXiv 2211.15595).

The layers need torch alone; networks, training and prediction are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from fsanet.attention import BandTreatments, FrequencySelfAttention, SpatialSelfAttention

if TYPE_CHECKING:
    from fsanet.models import FsaNet
    from fsanet.predict import Predictor

try:
    __version__ = version("fsanet")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_LAZY = {"FsaNet": "fsanet.models", "Predictor": "fsanet.predict"}

__all__ = [
    "BandTreatments",
    "FrequencySelfAttention",
    "FsaNet",
    "Predictor",
    "SpatialSelfAttention",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fsanet' has no attribute {name!r}")
