"""Evaluation of band-limited maps at points, compared with explicit cosines."""

import math

import pytest
import torch
from support import reference
from torch import nn

from fsanet.attention.dct import Band
from fsanet.convert.token_spectrum import TokenSpectrum, grid_points, patch_basis
from fsanet.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("size", "patch", "count"), [(12, 1, 12), (12, 1, 5), (13, 4, 3), (16, 4, 2)]
)
def test_patch_basis_is_the_cosines_at_the_patches(size, patch, count):
    basis = patch_basis(size, 1, 5, patch, count, torch.float64, CPU)
    assert basis.shape == (4 * patch, count)
    cells = size // patch
    for u in range(1, 5):
        for a in range(patch):
            for p in range(count):
                t = patch * ((p + 0.5) * cells / count - 0.5) + a
                expected = math.sqrt(2 / size) * math.cos(math.pi * u * (2 * t + 1) / (2 * size))
                assert basis[(u - 1) * patch + a, p].item() == pytest.approx(expected, abs=1e-13)


def test_few_points_of_a_smooth_map_lie_on_it():
    """A cosine sampled at m points is that cosine, not an average of it."""
    height, width, m = 24, 36, 6
    i, j = torch.arange(height).double(), torch.arange(width).double()
    x = torch.cos(math.pi * 2 * (2 * i + 1) / (2 * height))[:, None] * torch.cos(
        math.pi * 3 * (2 * j + 1) / (2 * width)
    )
    spectrum = TokenSpectrum.of(x.reshape(1, -1, 1), height, width, Band.of(4))
    at = spectrum.project(torch.eye(1, dtype=torch.float64), None, (m, m)).reshape(m, m)
    p = torch.arange(m).double()
    expected = torch.cos(math.pi * 2 * (2 * p + 1) / (2 * m))[:, None] * torch.cos(
        math.pi * 3 * (2 * p + 1) / (2 * m)
    )
    torch.testing.assert_close(at, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("points", [(3, 4), (5, 7), (2, 7)])
def test_points_of_a_whole_map_are_those_of_its_coefficients(points):
    x = torch.randn(2, 35, 3, dtype=torch.float64)
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    whole = TokenSpectrum.of(x, 5, 7, Band.of(None))
    assert whole.whole
    D = [reference.dct_rows(n, 0, n) for n in (5, 7)]
    c = torch.einsum("ui,vj,bijc->buvc", *D, x.unflatten(1, (5, 7)))
    counts = zip((5, 7), points, strict=True)
    at = [patch_basis(n, 0, n, 1, m, torch.float64, CPU) for n, m in counts]
    want = torch.einsum("up,vq,buvc,oc->bpqo", *at, c, weight).flatten(1, 2) + bias
    torch.testing.assert_close(whole.project(weight, bias, points), want)
    torch.testing.assert_close(whole.tokens(), x)


@pytest.mark.parametrize("size", [(8, 12), (9, 14)])
@pytest.mark.parametrize("band", [(0, 3, 0, 4), (1, 4, 0, 2), (0, 99, 0, None)])
def test_strided_convolution_from_coefficients(size, band):
    """At all patches: the convolution of the low-passed map, its last rows left out as there."""
    height, width = size
    convolution = nn.Conv2d(3, 5, 4, stride=4, dtype=torch.float64)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    spectrum = TokenSpectrum.of(x.flatten(2).mT, height, width, Band(*band))
    got = spectrum.convolve_patches(convolution, (height // 4, width // 4))
    expected = convolution(reference.low_pass(x, band)).flatten(2).mT
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_points_are_no_finer_than_the_map():
    assert grid_points(16, 9, 40) == (9, 16)
    assert grid_points((4, 99), 9, 40) == (4, 40)


def test_tokens_that_are_no_grid():
    with pytest.raises(InputError, match=r"\(B, 12, C\) of a 3x4 grid, got \(1, 13, 2\)"):
        TokenSpectrum.of(torch.zeros(1, 13, 2), 3, 4, Band.of(2))
