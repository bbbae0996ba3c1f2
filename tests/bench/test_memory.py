"""Memory against allocations whose size is known."""

import json
import subprocess
import sys

import torch
from torch import nn

from fsanet.bench.cases import find_cases
from fsanet.bench.memory import available_bytes, kept_for_backward, peak_of

CPU = torch.device("cpu")


def test_peak_counts_what_lives_at_one_time():
    x = torch.zeros(1024)

    def two_then_one():
        a = x.exp()  # 4 KiB
        b = x.exp()  # 8
        del a
        c = x.exp()  # 8 again
        return b, c

    assert peak_of(two_then_one, CPU)[0] == 2 * x.nbytes
    assert peak_of(lambda: [x.exp() for _ in range(3)], CPU)[0] == 3 * x.nbytes
    assert peak_of(lambda: None, CPU)[0] == 0


def test_peak_of_materialised_attention_is_two_matrices_of_scores():
    (case,) = find_cases(["softmax"])
    layer = case.build(8, CPU, torch.float32).eval()
    x = torch.randn(1, 8, 32, 32)
    with torch.no_grad():
        layer(x)
        peak, _ = peak_of(lambda: layer(x), CPU)
    scores = 4 * 1024**2
    assert 2 * scores < peak < 2.2 * scores  # and the thin q, k, v beside them


def test_kept_for_backward_without_parameters_and_input():
    x = torch.randn(3, 50, requires_grad=True)
    linear = nn.Linear(50, 7)
    assert kept_for_backward(linear, linear, x)[0] == 0  # its input and its weight
    sigmoid = nn.Sequential(linear, nn.Sigmoid(), nn.Sigmoid())
    kept, y = kept_for_backward(sigmoid, sigmoid, x)
    assert kept == 2 * y.nbytes
    square = nn.Module()
    assert kept_for_backward(square, lambda x: (x * 2) * (x * 2), x)[0] == 2 * x.nbytes


ALLOCATE = """
import json, torch
from fsanet.bench.memory import limit_memory
lines = [limit_memory(500 * 2**20)]
try:
    torch.ones(100 * 2**20, dtype=torch.uint8)
    lines.append("inside")
    torch.ones(1000 * 2**20, dtype=torch.uint8)
    lines.append("beyond")
except RuntimeError as error:
    lines.append(str(error))
print(json.dumps(lines))
"""


def test_the_limit_is_on_what_comes_on_top():
    command = [sys.executable, "-c", ALLOCATE]  # a process of its own: the limit stays in it
    output = subprocess.run(command, capture_output=True, check=True, text=True, timeout=200)
    allowed, first, second = json.loads(output.stdout)
    assert first == "inside"
    assert ("can't allocate memory" in second) if allowed else second == "beyond"


def test_available_memory_is_what_the_system_says_at_most():
    free = available_bytes()
    if free is not None:
        with open("/proc/meminfo") as lines:
            total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
        assert 0 <= free < total * 1024
