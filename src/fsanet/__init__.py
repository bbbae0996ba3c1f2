"""Frequency self-attention for dense prediction (FsaNet, arXiv 2211.15595).

Public names are imported on first use, so that the attention layers import PyTorch alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsanet.attention import BandTreatments, FrequencySelfAttention, SpatialSelfAttention
    from fsanet.convert import calibrate, convert_attention, load_model
    from fsanet.models import FsaNet
    from fsanet.predict.predictor import Predictor

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

_MODULES = {
    "BandTreatments": "fsanet.attention",
    "FrequencySelfAttention": "fsanet.attention",
    "FsaNet": "fsanet.models",
    "Predictor": "fsanet.predict.predictor",
    "SpatialSelfAttention": "fsanet.attention",
    "calibrate": "fsanet.convert",
    "convert_attention": "fsanet.convert",
    "load_model": "fsanet.convert",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'fsanet' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow: it imports email

    try:
        return version("fsanet")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"
