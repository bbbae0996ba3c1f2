"""Frequency self-attention for dense prediction (FsaNet, arXiv 2211.15595).

Names are imported when first used: the layers bring torch alone.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsanet.attention import BandTreatments, FrequencySelfAttention, SpatialSelfAttention
    from fsanet.convert import calibrate, convert_attention, load_model
    from fsanet.models import FsaNet
    from fsanet.predict.predictor import Predictor

try:
    __version__ = version("fsanet")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_LAZY = {
    "BandTreatments": "fsanet.attention",
    "FrequencySelfAttention": "fsanet.attention",
    "FsaNet": "fsanet.models",
    "Predictor": "fsanet.predict.predictor",
    "SpatialSelfAttention": "fsanet.attention",
    "calibrate": "fsanet.convert",
    "convert_attention": "fsanet.convert",
    "load_model": "fsanet.convert",
}

__all__ = [
    "BandTreatments",
    "FrequencySelfAttention",
    "FsaNet",
    "Predictor",
    "SpatialSelfAttention",
    "__version__",
    "calibrate",
    "convert_attention",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fsanet' has no attribute {name!r}")
