"""Convert networks with attention of their own to frequency attention, and open saved networks."""

from fsanet.convert.calibration import Calibration, calibrate, compare_grids
from fsanet.convert.conversion import Conversion, Converted, Flops, convert_attention
from fsanet.convert.kinds import KINDS, ConversionOptions, Kind
from fsanet.convert.saved import apply_conversion, load_model, save_converted

__all__ = [
    "KINDS",
    "Calibration",
    "Conversion",
    "ConversionOptions",
    "Converted",
    "Flops",
    "Kind",
    "apply_conversion",
    "calibrate",
    "compare_grids",
    "convert_attention",
    "load_model",
    "save_converted",
]
