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
    return torch.einsum("oc,bchw->bohw", weight.flatten(1), x) + bias[:, None, None]


def dense(x, layer):
    """Projects every position first and pools afterwards."""
    q = project(x, layer.query.weight, layer.query.bias)
    k = pooled(q, layer.pool_sizes)
    v = pooled(project(x, layer.value.weight, layer.value.bias), layer.pool_sizes)
    scores = torch.einsum("bdhw,bds->bhws", q, k) / q.shape[1] ** 0.5
    attended = torch.einsum("bhws,bes->behw", scores.softmax(3), v)
    return x + project(attended, layer.out.weight, layer.out.bias)


@pytest.mark.parametrize("size", [(9, 13), (8, 8), (5, 3), (1, 1)])
@pytest.mark.parametrize("sizes", [(1, 3, 6, 8), (2, 3)])
def test_equals_attention_to_pooled_keys(size, sizes):
    layer = opened(PyramidNonLocal(6, pool_sizes=sizes))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_110_keys():
    assert sum(n * n for n in PyramidNonLocal(8).pool_sizes) == 110


@pytest.mark.parametrize("sizes", [(), (0, 2)])
def test_pyramids_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match="each of them at least 1"):
        PyramidNonLocal(8, pool_sizes=sizes)
