"""Other published attention layers, each written from its paper: (B, C, H, W) to the same shape.

Rules that make the comparison fair: any H and W; the residual included; learned projections as in
the paper, never merged with one another; exact identities where they cost nothing (pooling before
projecting, the cheaper bracket); library kernels where they exist.
"""

from fsanet.bench.layers.criss_cross import CrissCrossAttention
from fsanet.bench.layers.double_attention import DoubleAttention
from fsanet.bench.layers.ema import EMAttention
from fsanet.bench.layers.external import ExternalAttention
from fsanet.bench.layers.fourier_mixing import FourierMixing
from fsanet.bench.layers.interlaced import InterlacedAttention
from fsanet.bench.layers.linear_attention import LinearAttention
from fsanet.bench.layers.paper_frequency import PaperFrequencyAttention
from fsanet.bench.layers.pyramid_nonlocal import PyramidNonLocal
from fsanet.bench.layers.regular_softmax import MaterialisedSelfAttention
from fsanet.bench.layers.spatial_reduction import SpatialReductionAttention

__all__ = [
    "CrissCrossAttention",
    "DoubleAttention",
    "EMAttention",
    "ExternalAttention",
    "FourierMixing",
    "InterlacedAttention",
    "LinearAttention",
    "MaterialisedSelfAttention",
    "PaperFrequencyAttention",
    "PyramidNonLocal",
    "SpatialReductionAttention",
]
