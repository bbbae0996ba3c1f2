"""Softmax of a map over a coarse grid of keys, against sampled cosines and explicit weights."""

import numpy as np
import pytest
import scipy.fft
import torch
from support import reference

from fsanet import FrequencySelfAttention
from fsanet.convert.grid import GridSelfAttention
from fsanet.errors import InputError


def layer(kind=GridSelfAttention, **options):
    torch.manual_seed(0)
    made = kind(6, similarity="softmax", zero_init=False, qkv_bias=True, norm=False, **options)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.7)
    return made.double().eval()


def sampled(size, band, count):
    basis = scipy.fft.dct(np.eye(count), type=2, norm="ortho", axis=0)[band]
    return torch.from_numpy(basis * np.sqrt(count / size))


@pytest.mark.parametrize("band", [((0, 3), (0, 4)), ((1, 3), (0, 2))])
def test_keys_are_the_map_between_its_positions(band):
    made = layer(k=band, grid=(4, 5))
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    h, w = slice(*band[0]), slice(*band[1])
    spectrum = torch.from_numpy(
        scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1))[..., h, w]
    )
    few = sampled(8, h, 4).T @ spectrum @ sampled(9, w, 5)  # (B, C, 4, 5)
    low = reference.low_pass(x, (h.start, h.stop, w.start, w.stop)).flatten(2).mT

    def project(linear, tokens):
        return tokens @ linear.weight.T + linear.bias

    keys = few.flatten(2).mT
    weights = (project(made.query, low) @ project(made.key, keys).mT * made.scale).softmax(-1)
    out = weights @ project(made.value, keys) @ made.out.weight.T
    expected = x + out.mT.unflatten(2, (8, 9))
    torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("recurrence", [1, 3])
def test_as_many_points_as_positions_are_all_keys(recurrence):
    made = layer(k=4, grid=99, recurrence=recurrence)
    exact = layer(FrequencySelfAttention, k=4, recurrence=recurrence)
    x = torch.randn(1, 6, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(made(x), exact(x), rtol=1e-9, atol=1e-9)


def test_error_falls_with_the_points():
    x = torch.randn(1, 6, 33, 47, dtype=torch.float64)
    exact = layer(FrequencySelfAttention, k=4)(x)
    errors = [(layer(k=4, grid=m)(x) - exact).norm().item() for m in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 1e-6 * errors[0]


def test_no_n_by_n_tensor():
    """A map of 96 x 128 on 64 keys: all tensors together stay far below N x N."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    sizes.append(tensor.numel())
            return out

    n = 96 * 128
    with Watch(), torch.no_grad():
        layer(k=4, grid=8)(torch.randn(1, 6, 96, 128, dtype=torch.float64))
    assert max(sizes) <= n * 64


def test_linear_similarity_has_no_grid():
    with pytest.raises(InputError, match="route='grid' is for softmax"):
        GridSelfAttention(6, similarity="dot", grid=4)
