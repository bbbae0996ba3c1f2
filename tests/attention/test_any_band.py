"""Property: the layer equals plain N x N attention on the low-passed map, for any band and size.

What is not reached, and why, stands in docs/method.md ("How exact").
"""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from support.layers import SIMILARITIES, opened
from support.reference import apply_block

from fsanet import FrequencySelfAttention

COMMON = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def axes(draw):
    """Length of an axis and a range of its frequencies, which may end beyond it."""
    size = draw(st.integers(1, 13))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.one_of(st.integers(start + 1, size + 2), st.just(start + 1)))
    return size, (start, stop), (start, min(stop, size))


def check(rows, columns, similarity, options, training, antisymmetric, seed, tolerance=1e-10):
    """Compare output and running averages with the reference."""
    (height, h, h_kept), (width, w, w_kept) = rows, columns
    torch.manual_seed(seed)
    layer = opened(
        FrequencySelfAttention(8, k=(h, w), similarity=similarity, **options), seed
    ).train(training)
    if similarity == "linear":  # keeps 1 + s away from zero: dividing by zero magnifies rounding
        layer.query.weight.data /= 8
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    if antisymmetric and any(v % 2 for v in range(*w_kept)):  # else nothing at all is left of x
        x = x - x.flip(-1)  # zero on the middle column, whatever the band
    norm, band = copy.deepcopy(layer.norm), (*h_kept, *w_kept)
    with torch.no_grad():
        want, got = apply_block(x, layer, band, norm), layer(x)
    scale = max((want - x).norm().item(), 1e-3 * x.norm().item(), 1e-3)
    assert (got - want).norm() <= tolerance * scale
    if norm is not None:
        for (name, a), b in zip(layer.norm.named_buffers(), norm.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


OPTIONS = st.fixed_dictionaries(
    {
        "block": st.sampled_from(["nonlocal", "ccnet"]),
        "qkv_bias": st.booleans(),
        "recurrence": st.integers(1, 3),
        "qk_channels": st.sampled_from([4, 8]),
    }
)
PLAIN = {"block": "nonlocal", "qkv_bias": False, "recurrence": 1, "qk_channels": 4}


@pytest.mark.parametrize("similarity", SIMILARITIES)
@settings(COMMON, max_examples=40)
@given(axes(), axes(), OPTIONS, st.booleans(), st.booleans(), st.integers(0, 10**6))
# The only column frequency, 5 of 7, vanishes in the middle column: tokens there are zero.
@example((11, (0, 7), (0, 7)), (7, (5, 6), (5, 6)), PLAIN, True, False, 0)
def test_equals_plain_attention(similarity, rows, columns, options, training, antisymmetric, seed):
    check(rows, columns, similarity, options, training, antisymmetric, seed)
