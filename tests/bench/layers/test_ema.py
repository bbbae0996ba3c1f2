import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import EMAttention


def project(conv, x):
    return torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], x) + conv.bias[:, None]


@torch.no_grad()
def by_formula(x, layer):
    """Loops over bases; the output, and the last bases of every image (B, C, K)."""
    tokens = project(layer.input, x.flatten(2))
    rebuilt, last = torch.zeros_like(tokens), []
    for image in range(x.shape[0]):
        points = tokens[image].T  # (N, C)
        mu = layer.bases.T.clone()  # (K, C)
        for _ in range(layer.iterations):
            likelihood = torch.exp(points @ mu.T)  # (N, K)
            z = likelihood / likelihood.sum(1, keepdim=True)
            for base in range(mu.shape[0]):
                mean = (z[:, base, None] * points).sum(0) / z[:, base].sum()
                mu[base] = mean / mean.pow(2).sum().sqrt()
        rebuilt[image] = (z @ mu).T
        last.append(mu.T)
    return x + project(layer.out, rebuilt).reshape(x.shape), torch.stack(last)


@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_the_formula(iterations):
    layer = opened(EMAttention(6, bases=4, iterations=iterations)).eval()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, by_formula(x, layer)[0] - x) < 1e-11


def test_bases_move_in_training_only():
    layer = opened(EMAttention(6, bases=4, momentum=0.8)).train()
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    before = layer.bases.clone()
    _, last = by_formula(x, layer)
    layer(x).sum().backward()  # backward after the buffer has changed
    want = 0.8 * before + 0.2 * last.mean(0)
    assert relative_error(layer.bases, want) < 1e-12
    assert relative_error(layer.bases, before) > 1e-3
    after = layer.bases.clone()
    layer.eval()(x)
    assert torch.equal(layer.bases, after)
    assert not layer.bases.requires_grad


def test_bases_start_with_unit_length():
    layer = EMAttention(32, bases=5)
    torch.testing.assert_close(layer.bases.norm(dim=0), torch.ones(5))
    assert EMAttention(512).bases.shape == (512, 64)
    assert "bases" in layer.state_dict()
