import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import LinearAttention


def feature(t):
    return torch.where(t > 0, t + 1, t.exp())


def dense(x, layer):
    """Head by head, with the normalised N x N kernel."""
    tokens = torch.einsum("oc,bcn->bon", layer.qkv.weight[:, :, 0, 0], x.flatten(2))
    q, k, v = (tokens + layer.qkv.bias[:, None]).chunk(3, 1)
    outs = []
    for qh, kh, vh in zip(*(t.chunk(layer.heads, 1) for t in (q, k, v)), strict=True):
        kernel = torch.einsum("bdi,bdj->bij", feature(qh), feature(kh))
        weights = kernel / kernel.sum(2, keepdim=True)
        outs.append(torch.einsum("bij,bej->bei", weights, vh))
    out = torch.einsum("oe,ben->bon", layer.out.weight[:, :, 0, 0], torch.cat(outs, 1))
    return x + (out + layer.out.bias[:, None]).reshape(x.shape)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equals_the_normalised_kernel(heads):
    layer = opened(LinearAttention(8, heads=heads))
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_no_matrix_over_positions():
    layer = LinearAttention(8)
    x = torch.randn(1, 8, 20, 30)
    sizes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    with torch.no_grad(), Record():
        layer(x)
    assert sizes
    assert max(sizes) == 3 * 4 * 600  # queries, keys and values


def test_features_that_vanish_give_no_nan():
    layer = LinearAttention(8)
    torch.nn.init.constant_(layer.qkv.bias, -200.0)  # exp(-200) is zero in float32
    assert torch.isfinite(layer(torch.randn(1, 8, 4, 4))).all()


def test_heads():
    assert LinearAttention(512).heads == 8
    assert LinearAttention(12).heads == 2
    with pytest.raises(ValueError, match="heads=3 does not divide the 4 inner channels"):
        LinearAttention(8, heads=3)
