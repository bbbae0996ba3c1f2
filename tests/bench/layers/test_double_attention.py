import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import DoubleAttention


def dense(x, layer):
    """The same through the N x N matrix of weights from position to position."""
    m, n, _ = layer.sizes
    tokens = torch.einsum("oc,bcp->bop", layer.project.weight[:, :, 0, 0], x.flatten(2))
    tokens = tokens + layer.project.bias[:, None]
    features, gather, distribute = tokens[:, :m], tokens[:, m : m + n], tokens[:, m + n :]
    gather = gather.exp() / gather.exp().sum(2, keepdim=True)  # over positions
    distribute = distribute.exp() / distribute.exp().sum(1, keepdim=True)  # over maps
    weights = torch.einsum("bni,bnj->bij", gather, distribute)  # from i to j
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights.sum(1)))
    mixed = torch.einsum("bmi,bij->bmj", features, weights)
    out = torch.einsum("cm,bmj->bcj", layer.out.weight[:, :, 0, 0], mixed)
    return x + (out + layer.out.bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("options", [{}, {"feature_channels": 3, "attention_maps": 5}])
def test_equals_the_dense_form(options):
    layer = opened(DoubleAttention(8, **options))
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_quarter_of_the_channels():
    assert DoubleAttention(512).sizes == [128, 128, 128]
