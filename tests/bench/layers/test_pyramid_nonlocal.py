import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import PyramidNonLocal


def pooled(tokens, sizes):
    """Adaptive average pooling by loops: window i of n is floor(i L / n) to ceil((i + 1) L / n)."""
    height, width = tokens.shape[2:]
    means = []
    for n in sizes:
        for i in range(n):
            for j in range(n):
                rows = slice(i * height // n, -(-(i + 1) * height // n))
                columns = slice(j * width // n, -(-(j + 1) * width // n))
                means.append(tokens[:, :, rows, columns].mean((2, 3)))
    return torch.stack(means, 2)  # (B, c, S)


def project(x, weight, bias):
    out = torch.einsum("oc,bchw->bohw", weight.flatten(1), x)
    return out if bias is None else out + bias[:, None, None]


def dense(x, context, layer):
    """Projects every position first and pools afterwards."""
    q = project(x, layer.query.weight, layer.query.bias)
    key = layer.query if layer.key is None else layer.key
    k = pooled(project(context, key.weight, key.bias), layer.pool_sizes)
    v = pooled(project(context, layer.value.weight, layer.value.bias), layer.pool_sizes)
    scores = torch.einsum("bdhw,bds->bhws", q, k) / q.shape[1] ** 0.5
    attended = torch.einsum("bhws,bes->behw", scores.softmax(3), v)
    return x + project(attended, layer.out.weight, layer.out.bias)


@pytest.mark.parametrize("size", [(9, 13), (8, 8), (5, 3), (1, 1)])
@pytest.mark.parametrize("sizes", [(1, 3, 6, 8), (2, 3)])
def test_equals_attention_to_pooled_keys(size, sizes):
    layer = opened(PyramidNonLocal(6, pool_sizes=sizes))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, x, layer) - x) < 1e-11


def test_keys_and_values_of_another_stage():
    layer = opened(PyramidNonLocal(6, context_channels=4, pool_sizes=(1, 3)))
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    context = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x, context) - x, dense(x, context, layer) - x) < 1e-11
    with pytest.raises(ValueError, match=r"expected a context map \(B, 4, h, w\), got None"):
        layer(x)
    with pytest.raises(ValueError, match="build the layer with context_channels"):
        opened(PyramidNonLocal(6))(x, context)


def test_110_keys():
    assert sum(n * n for n in PyramidNonLocal(8).pool_sizes) == 110


@pytest.mark.parametrize("sizes", [(), (0, 2)])
def test_pyramids_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match="each of them at least 1"):
        PyramidNonLocal(8, pool_sizes=sizes)
