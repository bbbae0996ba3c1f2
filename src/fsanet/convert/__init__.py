"""Existing networks in, networks with frequency attention out."""

from fsanet.convert.calibration import Calibration, calibrate
from fsanet.convert.modules import convert_attention
from fsanet.convert.report import Conversion, Converted, Flops
from fsanet.convert.route_error import RouteError, route_error
from fsanet.convert.saved import apply_conversion, load_model, save_converted

__all__ = [
    "Calibration",
    "Conversion",
    "Converted",
    "Flops",
    "RouteError",
    "apply_conversion",
    "calibrate",
    "convert_attention",
    "load_model",
    "route_error",
    "save_converted",
]
