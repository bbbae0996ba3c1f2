import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import InterlacedAttention


def masked(x, stage, allowed):
    """Softmax attention of (B, N, C) with an N x N mask of who may attend to whom."""
    tokens = x @ stage.qkv.weight.T + stage.qkv.bias
    q, k, v = tokens.chunk(3, 2)
    scores = torch.einsum("bid,bjd->bij", q, k) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(2)
    return torch.einsum("bij,bjd->bid", weights, v) @ stage.out.weight.T + stage.out.bias


def dense(x, layer, block):
    height, width = x.shape[2:]
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    bh, bw = min(block, height), min(block, width)
    place = (rows % bh) * bw + columns % bw
    member = torch.div(rows, bh, rounding_mode="floor") * width
    member = member + torch.div(columns, bw, rounding_mode="floor")
    out = masked(x.flatten(2).mT, layer.long, place[:, None] == place)
    out = masked(out, layer.short, member[:, None] == member)
    return x + out.mT.reshape(x.shape)


@pytest.mark.parametrize("size", [(6, 9), (7, 8), (9, 4), (2, 5), (1, 7), (3, 3)])
@pytest.mark.parametrize("block", [1, 3, 4, 8])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_masked_dense_softmax(size, block, batch):
    layer = opened(InterlacedAttention(6, block_size=block))
    x = torch.randn(batch, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer, block) - x) < 1e-11


def test_every_position_is_reached():
    layer = opened(InterlacedAttention(6, block_size=3))
    x = torch.randn(1, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    layer(x)[0, :, 4, 5].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("size", [(16, 16), (13, 15)])
def test_runs_fused_with_and_without_padding(size):
    layer = InterlacedAttention(32)
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(torch.randn(1, 32, *size))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert sum(count for key, count in calls.items() if "_attention_for_cpu" in key) == 2
