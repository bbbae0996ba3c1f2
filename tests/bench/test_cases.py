"""Every layer of the bench: same shape back, its FLOPs by hand those that PyTorch counts."""

import pytest
import torch

from fsanet.bench.cases import CASES, find_cases, flops_by_hand
from fsanet.cost import counted_flops
from fsanet.errors import InputError


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flops_by_hand_are_those_counted(case):
    for channels, (height, width) in ((16, (9, 14)), (128, (13, 10))):
        layer = case.build(channels, torch.device("cpu"), torch.float64).eval()
        x = torch.randn(2, channels, height, width, dtype=torch.float64)
        with torch.no_grad():
            assert layer(x).shape == x.shape
            counted = counted_flops(lambda layer=layer, x=x: layer(x))
        by_hand = flops_by_hand(layer, 2, height, width)
        if case.name == "fourier":  # an FFT is not seen
            assert by_hand > counted
        else:
            assert by_hand == counted


def test_flops_of_regular_attention_at_the_papers_size():
    (case,) = find_cases(["sdpa"])
    layer = case.build(512, torch.device("cpu"), torch.float32)
    n = 97 * 97
    products = [(n, 512, 256)] * 3 + [(n, 256, n), (n, n, 256), (n, 256, 512)]
    assert flops_by_hand(layer, 1, 97, 97) == sum(2 * a * b * c for a, b, c in products)


def test_no_layer_starts_closed():
    for name in ("softmax", "sdpa", "paper-R1", "dot-R1", "linear_softmax-R1", "criss-cross"):
        (case,) = find_cases([name])
        layer = case.build(16, torch.device("cpu"), torch.float64).eval()
        x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
        assert not torch.equal(layer(x), x), name


def test_the_floor_writes_into_fresh_memory():
    (case,) = find_cases(["floor"])
    x = torch.randn(1, 2, 3, 4)
    y = case.build(2, x.device, x.dtype)(x)
    assert torch.equal(y, 2 * x)
    assert y.data_ptr() != x.data_ptr()


def test_unknown_and_repeated_layers():
    with pytest.raises(InputError, match=r"no layer 'sdpaa'; did you mean 'sdpa'\?"):
        find_cases(["sdpaa"])
    with pytest.raises(InputError, match="no layer 'xyzxyz'; give some of softmax, sdpa"):
        find_cases(["xyzxyz"])
    with pytest.raises(InputError, match="given twice"):
        find_cases(["sdpa", "sdpa"])
