import math

import pytest
import torch
from support.layers import opened, relative_error

from fsanet.bench.layers import FourierMixing


def dft(size):
    """Unitary matrix of the discrete Fourier transform."""
    i = torch.arange(size, dtype=torch.float64)
    angle = -2 * math.pi * i[:, None] * i / size
    return torch.complex(angle.cos(), angle.sin()) / size**0.5


def split(z, function):
    return torch.complex(function(z.real), function(z.imag))


def shrink(t, threshold):
    return t.sign() * (t.abs() - threshold).clamp_min(0)


@torch.no_grad()
def dense(x, layer):
    channels, height, width = x.shape[1:]
    half, group = width // 2 + 1, channels // layer.blocks
    rows, columns = dft(height), dft(width)
    modes = torch.einsum("uh,bchw,vw->bcuv", rows, x.to(rows.dtype), columns)[..., :half]
    out = torch.zeros_like(modes)
    weights = [torch.view_as_complex(w) for w in (layer.weight1, layer.weight2)]
    biases = [torch.view_as_complex(b)[:, :, 0] for b in (layer.bias1, layer.bias2)]
    for block in range(layer.blocks):
        part = slice(block * group, (block + 1) * group)
        z = torch.einsum("oc,bcuv->bouv", weights[0][block], modes[:, part])
        z = split(z + biases[0][block][:, None, None], lambda t: t.clamp_min(0))
        z = torch.einsum("oc,bcuv->bouv", weights[1][block], z)
        z = z + biases[1][block][:, None, None]
        out[:, part] = split(z, lambda t: shrink(t, layer.shrinkage))
    lines = torch.einsum("uh,bcuv->bchv", rows.conj(), out)
    # a real line: every mode but DC (and the last one of an even width) stands for two
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    y = torch.einsum("vw,bchv->bchw", columns.conj()[:half] * twice[:, None], lines).real
    return x + y


@pytest.mark.parametrize("size", [(5, 7), (6, 4), (4, 9), (1, 5), (3, 1)])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_equals_explicit_dft_matrices(size, blocks, shrinkage):
    layer = opened(FourierMixing(8, blocks=blocks, shrinkage=shrinkage))
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(layer(x) - x, dense(x, layer) - x) < 1e-11


def test_shrinkage_silences_small_modes():
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(FourierMixing(8, shrinkage=1e6)(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transforms_run_in_single_precision(dtype):
    layer = FourierMixing(8).to(dtype)
    x = torch.randn(1, 8, 7, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    want = layer.float()(x.float())
    torch.testing.assert_close(y, want.to(dtype))  # rounded once, at the end


def test_autocast_leaves_the_modes_alone():
    layer = FourierMixing(8)
    x = torch.randn(1, 8, 7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, layer(x))


def test_blocks():
    assert FourierMixing(512).blocks == 8
    with pytest.raises(ValueError, match="blocks=3 does not divide the 8 channels"):
        FourierMixing(8, blocks=3)
    with pytest.raises(ValueError, match=r"shrinkage=-1\.0 has to be at least 0"):
        FourierMixing(8, shrinkage=-1.0)


def test_flops_that_the_counter_does_not_see():
    """5 N log2 N for two real FFTs per channel; 6 of the 8 operations of a complex multiply-add."""
    layer = FourierMixing(8, blocks=2)
    n, modes = 8 * 16, 8 * 9
    assert layer.uncounted_flops(3, 8, 16) == 3 * 8 * (5 * n * 7 + 2 * 6 * modes * 4)
