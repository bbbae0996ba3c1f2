import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import ExternalAttention


@torch.no_grad()
def by_loops(x, layer):
    batch, positions, slots = x.shape[0], x.shape[2] * x.shape[3], layer.slots
    keys = layer.key_memory.weight[:, :, 0, 0]  # (S, C)
    values = layer.value_memory.weight[:, :, 0, 0].T  # (S, C)
    y = x.flatten(2).clone()
    for b in range(batch):
        tokens = x[b].flatten(1).T  # (N, C)
        q = tokens @ layer.query.weight[:, :, 0, 0].T
        scores = q.new_empty(positions, slots)
        for i in range(positions):
            for j in range(slots):
                scores[i, j] = (q[i] * keys[j]).sum()
        for j in range(slots):  # over positions
            scores[:, j] = scores[:, j].exp() / scores[:, j].exp().sum()
        for i in range(positions):  # over slots
            scores[i] = scores[i] / scores[i].sum()
            out = sum(scores[i, j] * values[j] for j in range(slots))
            y[b, :, i] += layer.out.weight[:, :, 0, 0] @ out + layer.out.bias
    return y.reshape(x.shape)


def test_equals_explicit_loops():
    layer = opened(ExternalAttention(6, slots=5))
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, by_loops(x, layer) - x) < 1e-11


def test_normalised_over_both_axes():
    """A memory of equal values shows that the weights of a position sum to one."""
    layer = opened(ExternalAttention(6, slots=5))
    torch.nn.init.constant_(layer.value_memory.weight, 1.0)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    want = layer.out(torch.ones_like(x))
    torch.testing.assert_close(layer(x) - x, want)


def test_half_precision_weights_do_not_vanish():
    """A softmax over 2^17 positions has values that float16 holds as subnormals only."""
    layer = ExternalAttention(2, slots=3).half()
    x = torch.randn(1, 2, 256, 512).half()
    want = ExternalAttention(2, slots=3)
    want.load_state_dict(layer.float().state_dict())
    with torch.no_grad():
        single = want(x.float()) - x.float()
        got = layer.half()(x).float() - x.float()
    assert relative_error(got, single) < 0.02


def test_64_slots():
    assert ExternalAttention(512).key_memory.weight.shape[:2] == (64, 512)
