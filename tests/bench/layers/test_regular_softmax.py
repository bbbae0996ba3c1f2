import pytest
import torch
from support.layers import opened, relative_error
from support.reference import apply_block

from fsanet import SpatialSelfAttention
from fsanet.bench.layers import MaterialisedSelfAttention


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recurrence", [1, 2])
def test_equals_the_fused_layer_with_the_same_weights(training, recurrence):
    layer = opened(MaterialisedSelfAttention(10, recurrence=recurrence)).train(training)
    fused = SpatialSelfAttention(10, similarity="softmax", recurrence=recurrence).double()
    fused.load_state_dict(layer.state_dict())
    fused.train(training)
    x = torch.randn(2, 10, 7, 5, dtype=torch.float64)
    assert relative_error(layer(x) - x, fused(x) - x) < 1e-12
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, fused.state_dict()[name], msg=name)


def test_equals_plain_attention():
    layer = opened(MaterialisedSelfAttention(6, qk_channels=2, value_channels=4)).eval()
    norm = torch.nn.BatchNorm2d(6).double().eval()
    norm.load_state_dict(layer.norm.state_dict())
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        want = apply_block(x, layer, None, norm)
        assert relative_error(layer(x) - x, want - x) < 1e-12


def test_starts_as_the_identity():
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(MaterialisedSelfAttention(6)(x), x)
    assert relative_error(MaterialisedSelfAttention(6, zero_init=False)(x), x) > 0.1
