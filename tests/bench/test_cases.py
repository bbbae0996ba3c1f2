"""The layers of the bench: same shape back, and FLOPs that need no computation."""

import pytest
import torch

from fsanet.attention.dct import Band
from fsanet.bench.cases import CASES, find_cases
from fsanet.cost import count_flops
from fsanet.errors import InputError


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flops_on_the_meta_device_are_those_of_a_real_pass(case):
    for channels, (height, width) in ((16, (9, 14)), (128, (13, 10))):
        counted = []
        for device in ("cpu", "meta"):
            layer = case.build(channels, device, torch.float64).eval()
            x = torch.ones(2, channels, height, width, dtype=torch.float64, device=device)
            assert layer(x).shape == x.shape  # and bases for this size are built
            counted.append(count_flops(lambda layer=layer, x=x: layer(x)))
        assert counted[0] == counted[1]
        assert (counted[0] == 0) == (case.name == "floor")


def test_device_and_dtype_of_a_built_layer():
    for case in CASES:
        for p in case.build(8, "meta", torch.float64).parameters():
            assert (p.dtype, p.device.type) == (torch.float64, "meta")


def test_no_layer_starts_as_the_identity():
    for name in ("softmax", "sdpa", "paper-R1", "dot-R1", "linear_softmax-R1", "criss-cross"):
        (case,) = find_cases([name])
        layer = case.build(16, "cpu", torch.float64).eval()
        x = torch.randn(1, 16, 9, 9, dtype=torch.float64)
        assert not torch.equal(layer(x), x), name


def test_the_floor_writes_into_fresh_memory():
    (case,) = find_cases(["floor"])
    x = torch.randn(1, 2, 3, 4)
    y = case.build(2, x.device, x.dtype)(x)
    assert torch.equal(y, 2 * x)
    assert y.data_ptr() != x.data_ptr()


def test_rounds_and_k_can_be_named():
    ours, published, plain = find_cases(["linear_softmax-R3-k16", "paper-R2-k5", "dot-R1"])
    for case, recurrence, k in ((ours, 3, 16), (published, 2, 5), (plain, 1, 8)):
        layer = case.build(8, "meta", torch.float32)
        assert (layer.recurrence, str(layer.band)) == (recurrence, str(Band.of(k)))
    assert ours.ours
    assert not published.ours
    with pytest.raises(InputError, match="no layer 'fourier-R2'"):
        find_cases(["fourier-R2"])


def test_unknown_and_repeated_layers():
    with pytest.raises(InputError, match=r"no layer 'sdpaa'; did you mean 'sdpa'\?"):
        find_cases(["sdpaa"])
    with pytest.raises(InputError, match="no layer 'xyzxyz'; choose from softmax, sdpa"):
        find_cases(["xyzxyz"])
    with pytest.raises(InputError, match="given twice"):
        find_cases(["sdpa", "sdpa"])
