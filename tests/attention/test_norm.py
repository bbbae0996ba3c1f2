"""Batch norm on coefficients: torch's own on the map, in one process and in two."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from support.reference import apply_block
from support.sync_worker import CASES, images, layer_of, step, work

from fsanet import FrequencySelfAttention


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax", "linear"])
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
    layer = layer_of(similarity, **options)
    band = (0, CASES[similarity]) * 2
    reference = copy.deepcopy(layer)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64)
    for _ in range(2):
        with torch.no_grad():
            want = apply_block(x, reference, band, reference.norm)
            torch.testing.assert_close(layer(x), want)
    for (name, a), b in zip(layer.norm.named_buffers(), reference.norm.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    with torch.no_grad():
        want = apply_block(x, reference, band, reference.norm.eval())
        torch.testing.assert_close(layer.eval()(x), want)


def test_frozen_batch_norm_stays_as_it_is():
    layer = layer_of("dot")
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


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """Results of two processes, this one and a spawned one, for every case."""
    folder = tmp_path_factory.mktemp("sync")
    other = mp.get_context("spawn").Process(
        target=work, args=(1, folder / "store", folder / "1.pt"), daemon=True
    )
    other.start()
    work(0, folder / "store", folder / "0.pt")
    other.join(60)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, shares):
    first, second = (share[case] for share in shares)
    y, grad, running_mean, running_var, weight_grad = step(layer_of(case), images())
    close = torch.testing.assert_close
    close(torch.cat([first[0], second[0]]), y)
    close(torch.cat([first[1], second[1]]), grad)
    for share in (first, second):
        close(share[2], running_mean)
        close(share[3], running_var)
    close(first[4] + second[4], weight_grad)
