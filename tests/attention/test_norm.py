"""Batch norm on coefficients: torch's own on the map, in one process and in two."""

import copy
import socket

import pytest
import torch
import torch.multiprocessing as mp
from support.reference import apply_block
from support.sync_worker import layer_of, work

from fsanet import FrequencySelfAttention


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax"])
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": None},
        {"momentum": 0.3, "eps": 0.1},
        {"affine": False},
        {"track_running_stats": False},
    ],
)
def test_options_of_batch_norm(similarity, options):
    layer = layer_of(similarity, 8, **options)
    reference = copy.deepcopy(layer)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    for _ in range(2):
        with torch.no_grad():
            want = apply_block(x, reference, (0, 6, 0, 5), reference.norm)
            torch.testing.assert_close(layer(x), want)
    for (name, a), b in zip(layer.norm.named_buffers(), reference.norm.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    with torch.no_grad():
        want = apply_block(x, reference, (0, 6, 0, 5), reference.norm.eval())
        torch.testing.assert_close(layer.eval()(x), want)


def test_frozen_batch_norm_stays_as_it_is():
    layer = layer_of("dot", 4)
    layer.norm.eval()  # the layer itself is training
    before = copy.deepcopy(layer.norm.state_dict())
    layer(torch.randn(2, 8, 6, 6, dtype=torch.float64))
    for key, value in layer.norm.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_large_mean_does_not_cancel_in_float32():
    layer = FrequencySelfAttention(8, k=4, zero_init=False)
    x = torch.randn(4, 8, 16, 16) * 0.01 + 100
    y64 = copy.deepcopy(layer).double()(x.double()) - x.double()
    change = layer(x).double() - x.double()
    assert (change - y64).norm() / y64.norm() < 0.05
    assert change.std() > 0.3  # normalised to unit spread, not lost in rounding


def test_one_value_per_channel_is_refused_in_training():
    layer = FrequencySelfAttention(8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(1, 8, 1, 1))


@pytest.mark.parametrize(
    ("similarity", "k"), [("dot", 4), ("dot", ((1, 4), (0, 3))), ("linear_softmax", 3)]
)
def test_two_processes_are_one(similarity, k):
    layer = layer_of(similarity, k)
    state = copy.deepcopy(layer.state_dict())
    x = torch.randn(3, 8, 7, 6, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    y = layer(whole)
    y.square().sum().backward()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.Manager() as manager:
        out = manager.dict()
        mp.spawn(work, (port, similarity, k, x, state, out), nprocs=2)
        results = [out[0], out[1]]
    close = torch.testing.assert_close
    close(torch.cat([r[0] for r in results]), y.detach())
    close(torch.cat([r[1] for r in results]), whole.grad)
    for r in results:
        close(r[2], layer.norm.running_mean)
        close(r[3], layer.norm.running_var)
    close(results[0][4] + results[1][4], layer.value.weight.grad)
