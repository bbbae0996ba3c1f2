"""Memory against allocations of known size."""

import mmap
import sys

import pytest
import torch
from torch import nn

from fsanet.bench.layers import MaterialisedSelfAttention
from fsanet.cost import (
    available_memory,
    kept_for_backward,
    peak_memory,
    peak_resident_memory,
)

CPU = torch.device("cpu")


def test_peak_counts_what_lives_at_one_time():
    x = torch.zeros(1024)

    def two_then_one():
        a = x.exp()  # 4 KiB
        b = x.exp()  # 8
        del a
        c = x.exp()  # 8 again
        return b, c

    assert peak_memory(two_then_one, CPU) == 2 * x.nbytes
    assert peak_memory(lambda: [x.exp() for _ in range(3)], CPU) == 3 * x.nbytes
    assert peak_memory(lambda: None, CPU) == 0
    assert peak_memory(lambda: None, torch.device("meta")) is None


def test_peak_of_materialised_attention_is_two_matrices_of_scores():
    layer = MaterialisedSelfAttention(8).eval()
    x = torch.randn(1, 8, 32, 32)
    with torch.no_grad():
        layer(x)
        peak = peak_memory(lambda: layer(x), CPU)
    scores = 4 * 1024**2
    assert 2 * scores < peak < 2.2 * scores  # besides q, k and v, which are small


def test_kept_for_backward_without_parameters_and_input():
    x = torch.randn(3, 50, requires_grad=True)
    linear = nn.Linear(50, 7)
    assert kept_for_backward(linear, linear, x)[0] == 0  # its input and its weight
    sigmoid = nn.Sequential(linear, nn.Sigmoid(), nn.Sigmoid())
    kept, y = kept_for_backward(sigmoid, sigmoid, x)
    assert kept == 2 * y.nbytes
    square = nn.Module()
    assert kept_for_backward(square, lambda x: (x * 2) * (x * 2), x)[0] == 2 * x.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="measured on Linux only")
def test_resident_memory_includes_what_torch_does_not_allocate():
    size = 200 * 2**20

    def touch():
        pages = mmap.mmap(-1, size)  # not memory that earlier tests have freed
        for start in range(0, size, mmap.PAGESIZE):
            pages[start] = 1

    found = peak_resident_memory(touch)
    assert 0.9 * size < found < 1.5 * size


def test_available_memory_is_at_most_the_total():
    free = available_memory()
    if free is not None:
        with open("/proc/meminfo") as lines:
            total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
        assert 0 <= free < total * 1024
