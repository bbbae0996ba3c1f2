import copy

import pytest
import torch
from support.layers import BLOCKS, SIMILARITIES, Written, opened, relative_error
from support.reference import apply_block

from fsanet import FrequencySelfAttention, SpatialSelfAttention


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("recurrence", [1, 3])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_equals_plain_attention(similarity, block, recurrence, qkv_bias):
    layer = opened(
        SpatialSelfAttention(
            10, similarity=similarity, block=block, recurrence=recurrence, qkv_bias=qkv_bias
        )
    )
    norm = copy.deepcopy(layer.norm)
    x = torch.randn(2, 10, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        want = apply_block(x, layer, None, norm)
        assert relative_error(layer(x) - x, want - x) <= 1e-10


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_channels": 3}])
def test_state_dict_is_that_of_the_frequency_layer(block, options):
    spatial = SpatialSelfAttention(8, block=block, **options).state_dict()
    frequency = FrequencySelfAttention(8, block=block, **options).state_dict()
    assert {k: v.shape for k, v in spatial.items()} == {k: v.shape for k, v in frequency.items()}


def test_softmax_scale_is_an_option():
    layer = opened(SpatialSelfAttention(8, similarity="softmax", scale=0.0)).eval()
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    # all scores equal: every position gets the mean value
    change = layer(x) - x
    torch.testing.assert_close(change, change[..., :1, :1].expand_as(change))


def test_softmax_runs_fused():
    layer = SpatialSelfAttention(32, similarity="softmax", zero_init=False)
    with torch.no_grad(), Written() as written:
        layer(torch.randn(1, 32, 16, 16))
    assert any("flash_attention" in operator for operator in written.operators)


def test_invalid_input():
    with pytest.raises(ValueError, match=r"expected a feature map \(B, 8, H, W\)"):
        SpatialSelfAttention(8)(torch.zeros(1, 4, 2, 2))
