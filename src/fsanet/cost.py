"""FLOPs of a forward pass: counted by PyTorch, and by hand for the layers of this library.

Convention: 2 FLOPs per multiply-add, matrix products and convolutions only; element-wise work,
sums, norms and softmax count nothing, here and in `torch.utils.flop_counter`.

Legend: B batch, C channels, H x W grid, N = H*W positions, kh x kw kept frequencies, K = kh*kw,
d query/key channels, e value channels, R recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.errors import InputError

__all__ = ["counted_flops", "flop_counter", "frequency_flops", "spatial_flops"]


def _product_flops(
    residual: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object
) -> int:
    """Of ``residual += left @ right``, by shapes: (..., m, j) and (..., j, n)."""
    return 2 * math.prod(left) * right[-1]


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Of scores and their product with the values: (B, heads, N, d), (..., M, d), (..., M, e)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_UNKNOWN: dict[Any, Any] = {
    # The counter knows these products only where they write to fresh memory,
    torch.ops.aten.addmm_: _product_flops,
    torch.ops.aten.baddbmm_: _product_flops,
    # and that of torch 2.11 does not know fused attention on a CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}


def counted_flops(run: Callable[[], object]) -> int:
    """FLOPs of what ``run()`` calls, by `torch.utils.flop_counter`; it sees no FFT.

    >>> a, b = torch.ones(3, 4), torch.ones(4, 5)
    >>> counted_flops(lambda: a @ b)
    120
    """
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which knows what this library calls."""
    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN)


def spatial_flops(layer: SpatialSelfAttention, batch: int, height: int, width: int) -> int:
    """Regular attention with softmax, however it is bracketed or fused.

    Three projections, N x N scores, their product with the values, output projection:
    ``2 B N (C (2d + e) + N (d + e) + e C)`` per round.

    Raises:
        InputError: for another similarity.
    """
    if layer.similarity != "softmax":
        raise InputError(f"similarity={layer.similarity!r}: FLOPs are known for softmax only")
    n, c = height * width, layer.channels
    d, e = layer.query.out_features, layer.value.out_features
    output = e * c if layer.out is not None else 0
    return layer.recurrence * 2 * batch * n * (c * (2 * d + e) + n * (d + e) + output)


def frequency_flops(layer: FrequencySelfAttention, batch: int, height: int, width: int) -> int:
    """Frequency attention in coefficient space, for a band that holds DC.

    Analysis along H and then W, R rounds on coefficients, one synthesis. "linear_softmax" and
    "linear" add maps of one value a position, by products with pairs of basis functions; their
    output is a product per row of the grid, as wide as the kept columns of all rounds together.

    Raises:
        InputError: for "softmax", whose cost is that of the regular layer on low-passed tokens.
    """
    band = layer.band.clip(height, width)
    kh, kw = (band.h1 or height) - band.h0, (band.w1 or width) - band.w0
    n, k, c = height * width, kh * kw, layer.channels
    d, e = layer.query.out_features, layer.value.out_features
    rounds = layer.recurrence
    analysis = c * (kh * n + k * width)
    projections = k * c * (2 * d + e) + (k * e * c if layer.out is not None else 0)
    if layer.similarity == "dot":
        # (q k) v or q (k v), whichever is less
        mixing = k * k * (d + e) if k * (d + e) <= 2 * d * e else 2 * k * d * e
        return 2 * batch * (2 * analysis + rounds * (projections + mixing))
    if layer.similarity == "softmax":
        raise InputError("similarity='softmax': FLOPs by hand are not known for this layer")
    v = c if layer.out is not None else e  # width of the values once they are projected
    if k > 2 * d + e:  # so many coefficients that the layer works on tokens at positions
        tokens = k * c * (2 * d + e) + (2 * d + e) * (k * width + kh * n)
        attended = n * (2 * d * e + d + (e * c if layer.out is not None else 0))
        return 2 * batch * rounds * (analysis + tokens + attended)
    to_band, to_map = kh * n + k * width, height * k + kw * n  # one map: analysis, synthesis
    gram_to_map = height * k * k + kw * kw * n  # a value a position from a K x K matrix
    map_to_gram = kh * kh * n + k * k * width
    mixing = k * k * (d + v) + k * d + to_map  # scores, times values; the sums of similarities
    between = map_to_gram + k * k * c  # a round's output, back in the band
    columns = kw  # numbers a row of the map is put together from, in a round
    if layer.similarity == "linear_softmax":  # lengths of q and k; keys over their lengths
        mixing += 2 * (k * k * d + gram_to_map) + map_to_gram + k**3 + to_band + k * d
        between += to_band
        columns += 1  # the sum of values
    constant = 1 if layer.norm is not None or layer.bias is not None else 0
    output = rounds * height * k * c + c * n * (rounds * columns + constant)
    inner = rounds * (projections + mixing) + (rounds - 1) * between
    return 2 * batch * (analysis + inner + output)


def parameters_of(module: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in module.parameters())
