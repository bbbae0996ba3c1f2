"""FLOPs of operations that PyTorch's counter does not know by itself, against explicit products."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fsanet import FrequencySelfAttention, SpatialSelfAttention
from fsanet.cost import count_flops, count_parameters


def tensor(*shape, device="meta"):
    return torch.ones(shape, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_in_place_and_fused_attention(device):
    a, b, sum_ = (tensor(*shape, device=device) for shape in [(3, 4), (4, 5), (3, 5)])
    assert count_flops(lambda: sum_.addmm_(a, b)) == 2 * 3 * 4 * 5
    a, b, sum_ = (tensor(2, *shape, device=device) for shape in [(3, 4), (4, 5), (3, 5)])
    assert count_flops(lambda: sum_.baddbmm_(a, b)) == 2 * 2 * 3 * 4 * 5
    q, k, v = (tensor(2, 3, n, 8, device=device) for n in (10, 7, 7))
    products = 2 * 3 * 10 * 7 * (8 + 8)
    with torch.no_grad():
        assert count_flops(lambda: scaled_dot_product_attention(q, k, v)) == 2 * products


def total(*products):
    """FLOPs of matrix products (m, j) x (j, n), given as (m, j, n)."""
    return sum(2 * m * j * n for m, j, n in products)


@torch.no_grad()
def test_regular_attention_at_the_size_of_the_paper():
    n, c, d = 97 * 97, 512, 256
    with torch.device("meta"):
        layer, x = SpatialSelfAttention(c, similarity="softmax").eval(), tensor(1, c, 97, 97)
    products = total(*[(n, c, d)] * 3, (n, d, n), (n, n, d), (n, d, c))
    assert count_flops(lambda: layer(x)) == products
    assert count_parameters(layer) == 4 * c * d + 2 * c


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_frequency_attention(device):
    """Analysis along H and W, a round on K coefficients, synthesis."""
    c, h, w, kh, kw, d = 16, 9, 14, 3, 4, 8
    layer = FrequencySelfAttention(c, k=(kh, kw), recurrence=2).eval().to(device)
    x = tensor(1, c, h, w, device=device)
    layer(x)  # bases are built once per size
    k = kh * kw
    transform = total((c * kh, h, w), (c * kh, w, kw))
    mixing = total((d, k, d), (k, d, d))  # k v first: fewer operations than q k here
    rounds = total(*[(k, c, d)] * 3, (k, d, c)) + mixing
    assert count_flops(lambda: layer(x)) == 2 * transform + 2 * rounds
