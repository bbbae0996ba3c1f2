"""Functions of experiments/real_context.py against independent computations."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsanet import SpatialSelfAttention, convert_attention

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import real_context

        yield real_context
    finally:
        sys.path.remove(str(EXPERIMENTS))


def regions_by_flooding(label):
    """Positions of each 4-connected set of one class, by a flood fill."""
    left = {(i, j) for i, j in np.ndindex(*label.shape) if label[i, j] != 255}
    while left:
        region, front = set(), [min(left)]
        while front:
            i, j = front.pop()
            if (i, j) in left:
                left.remove((i, j))
                region.add((i, j))
                near = ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1))
                front += [p for p in near if p in left and label[p] == label[i, j]]
        yield sorted(region)


def test_variance_in_regions(script):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 9, 11))
    label = np.kron(rng.integers(0, 3, (3, 4)), np.ones((3, 3), int))[:, :11]
    label[4, 2:9] = 255
    label[0, 0] = 7  # a region too small to count
    inside, used = 0.0, []
    for region in regions_by_flooding(label):
        if len(region) >= 4:
            points = np.array([values[:, i, j] for i, j in region])
            inside += len(points) * points.var(0).sum()
            used += list(points)
    assert 0 < len(used) < label.size
    total = len(used) * np.var(used, axis=0).sum()
    np.testing.assert_allclose(script.variance_in_regions(values, label), [inside, total])


@pytest.mark.parametrize(
    "layers",
    [[(3, 1, 1)], [(3, 2, 1), (3, 1, 1)], [(5, 2, 1), (3, 2, 2), (1, 1, 1), (3, 1, 4)]],
)
def test_receptive_field(script, layers):
    """By the recurrence r <- r + (kernel - 1) * dilation * (product of strides before)."""
    network, field, jump = [], 1, 1
    for kernel, stride, dilation in layers:
        channels = 3 if not network else 4
        padding = dilation * (kernel // 2)
        network += [nn.Conv2d(channels, 4, kernel, stride, padding, dilation), nn.ReLU6()]
        field, jump = field + (kernel - 1) * dilation * jump, jump * stride
    torch.manual_seed(0)
    assert script.receptive_field(nn.Sequential(*network)) == field


@pytest.mark.parametrize("keep", [True, False])
def test_attention_on_a_filtered_map(script, keep):
    torch.manual_seed(0)
    attention = SpatialSelfAttention(6, similarity="softmax", zero_init=False).double().eval()
    x = torch.randn(2, 6, 13, 15, dtype=torch.float64)
    low = script.OnFilteredMap(attention, [8], keep=True)
    high = [((0, 8), (8, None)), ((8, None), (0, None))]
    other = script.OnFilteredMap(attention, high, keep=False)  # all but the high ones: the same
    with torch.no_grad():
        want = convert_attention(attention, k=8).model(x)
        got = (low if keep else other)(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
