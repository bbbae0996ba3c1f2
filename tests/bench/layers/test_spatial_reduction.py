import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import SpatialReductionAttention


def linear(tokens, module):
    return tokens @ module.weight.T + module.bias


def reduced(x, layer):
    """Reduces a map padded by hand patch by patch, followed by layer norm written out."""
    r = layer.ratio
    batch, channels, height, width = x.shape
    rows, columns = -(-height // r), -(-width // r)
    top, left = (rows * r - height + 1) // 2, (columns * r - width + 1) // 2
    room = x.new_zeros(batch, channels, (rows + 1) * r, (columns + 1) * r)
    room[:, :, top : top + height, left : left + width] = x
    tokens = []
    for i in range(rows):
        for j in range(columns):
            patch = room[:, :, i * r : (i + 1) * r, j * r : (j + 1) * r]
            token = torch.einsum("ocij,bcij->bo", layer.reduce.weight, patch) + layer.reduce.bias
            centred = token - token.mean(1, keepdim=True)
            token = centred / (centred.square().mean(1, keepdim=True) + layer.norm.eps).sqrt()
            tokens.append(token * layer.norm.weight + layer.norm.bias)
    return torch.stack(tokens, 1)


def dense(x, layer):
    tokens = x.flatten(2).mT
    sources = tokens if layer.ratio == 1 else reduced(x, layer)
    q = linear(tokens, layer.query)
    k, v = linear(sources, layer.key_value).chunk(2, 2)
    outs = []
    for qh, kh, vh in zip(*(t.chunk(layer.heads, 2) for t in (q, k, v)), strict=True):
        scores = torch.einsum("bid,bjd->bij", qh, kh) / qh.shape[2] ** 0.5
        outs.append(torch.einsum("bij,bjd->bid", scores.softmax(2), vh))
    return x + linear(torch.cat(outs, 2), layer.out).mT.reshape(x.shape)


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(5, 7), (8, 12), (1, 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_equals_softmax_attention_to_reduced_keys(ratio, heads, size, batch):
    layer = opened(SpatialReductionAttention(6, ratio=ratio, heads=heads))
    x = torch.randn(batch, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_ratio_one_has_no_reduction():
    names = {name for name, _ in SpatialReductionAttention(8, ratio=1).named_parameters()}
    assert {name.split(".")[0] for name in names} == {"query", "key_value", "out"}


def test_defaults_at_512_channels():
    layer = SpatialReductionAttention(512)
    assert (layer.ratio, layer.heads) == (4, 8)


def test_runs_fused():
    layer = SpatialReductionAttention(32)
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(torch.randn(1, 32, 15, 17))
    assert any("_attention_for_cpu" in event.key for event in profile.key_averages())


def test_heads_have_to_divide():
    with pytest.raises(ValueError, match="heads=3 does not divide the 8 channels"):
        SpatialReductionAttention(8, heads=3)
