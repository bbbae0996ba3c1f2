import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import CrissCrossAttention


def dense(x, layer):
    """Masked N x N softmax: a position attends to its row and its column, itself once."""
    batch, channels, height, width = x.shape
    weight, bias = layer.qkv.weight.detach(), layer.qkv.bias.detach()
    d = (weight.shape[0] - channels) // 2
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    on_path = (rows[:, None] == rows) | (columns[:, None] == columns)
    assert (on_path.sum(1) == height + width - 1).all()
    for _ in range(layer.recurrence):
        tokens = torch.einsum("oc,bcn->bon", weight, x.flatten(2)) + bias[:, None]
        q, k, v = tokens[:, :d], tokens[:, d : 2 * d], tokens[:, 2 * d :]
        scores = torch.einsum("bdi,bdj->bij", q, k)
        weights = scores.masked_fill(~on_path, -torch.inf).softmax(2)
        out = torch.einsum("bij,bcj->bci", weights, v)
        x = x + layer.gate.detach() * out.reshape(batch, channels, height, width)
    return x


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("size", [(5, 7), (6, 3), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_masked_dense_softmax(recurrence, size, batch):
    layer = opened(CrissCrossAttention(8, recurrence=recurrence, qk_channels=3))
    x = torch.randn(batch, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_two_rounds_reach_every_position_and_one_the_path_only():
    for recurrence, reached in [(1, 4 + 6 - 1), (2, 4 * 6)]:
        layer = opened(CrissCrossAttention(8, recurrence=recurrence))
        x = torch.randn(1, 8, 4, 6, dtype=torch.float64, requires_grad=True)
        layer(x)[0, :, 1, 2].sum().backward()
        assert (x.grad.abs().sum(1) > 0).sum() == reached


def test_starts_as_the_identity_with_an_eighth_of_the_channels():
    layer = CrissCrossAttention(16)
    x = torch.randn(2, 16, 5, 4)
    assert torch.equal(layer(x), x)
    assert layer.recurrence == 2
    assert layer.qkv.weight.shape == (2 + 2 + 16, 16)
    assert relative_error(CrissCrossAttention(16, zero_init=False)(x), x) > 0.05
