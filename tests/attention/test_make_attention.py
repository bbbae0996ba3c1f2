import pytest
from torch import nn

from fsanet import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention import make_attention


def test_kinds_and_options():
    options = {"k": (4, 6), "similarity": "linear", "recurrence": 2, "block": "ccnet"}
    frequency = make_attention("frequency", 16, **options)
    spatial = make_attention("spatial", 16, **options)
    assert (type(frequency), type(spatial)) == (FrequencySelfAttention, SpatialSelfAttention)
    assert frequency.band == (0, 4, 0, 6)
    for layer in (frequency, spatial):
        assert (layer.similarity, layer.recurrence, layer.block) == ("linear", 2, "ccnet")
    assert type(make_attention(None, 16, **options)) is nn.Identity


def test_other_kinds_and_options_are_refused():
    with pytest.raises(ValueError, match=r"attention='fourier': use \"frequency\", \"spatial\" or"):
        make_attention("fourier", 16)
    with pytest.raises(TypeError, match="recurence"):
        make_attention("frequency", 16, recurence=2)
