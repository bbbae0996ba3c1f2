"""Sums over positions without an N x K matrix, against that matrix."""

import pytest
import torch

from fsanet.attention.dct import dct_basis, dense_basis
from fsanet.attention.spectrum import Grid, Spectrum

CPU = torch.device("cpu")


@pytest.fixture(params=[((0, 3), (0, 4)), ((1, 4), (2, 4)), ((0, 1), (0, 5))])
def bases(request):
    rows, columns = request.param
    return (
        dct_basis(6, *rows, dtype=torch.float64, device=CPU),
        dct_basis(5, *columns, dtype=torch.float64, device=CPU),
    )


def dense(rows, columns, extended):
    p = dense_basis(rows, columns)  # (N, K)
    return torch.cat([p, torch.full((30, 1), 30**-0.5)], 1) if extended else p


@pytest.mark.parametrize("extended", [False, True])
def test_grid_against_the_dense_basis(bases, extended):
    grid, p = Grid(*bases, extended), dense(*bases, extended)
    size = p.shape[1]
    c = torch.randn(2, size, dtype=torch.float64)
    g = torch.rand(2, 6, 5, dtype=torch.float64)
    half = torch.randn(2, size, 7, dtype=torch.float64)
    gram = half @ half.mT
    torch.testing.assert_close(grid.synthesise(c), (c @ p.T).view(2, 6, 5))
    torch.testing.assert_close(grid.analyse(g), g.flatten(1) @ p)
    quadratic = torch.einsum("pa,bac,pc->bp", p, gram, p).view(2, 6, 5)
    torch.testing.assert_close(grid.quadratic(gram), quadratic)
    weighted = torch.einsum("pa,bp,pc->bac", p, g.flatten(1), p)
    torch.testing.assert_close(grid.weighted_gram(g), weighted)
    assert (grid.positions, grid.shape) == (30, (6, 5))


def test_tokens_and_planes_are_the_same_numbers(bases):
    rows, columns = bases
    coefficients = torch.randn(2, 9, rows.shape[0], columns.shape[0])
    spectrum = Spectrum.of(coefficients, rows, columns, has_dc=True)
    assert spectrum.tokens.is_contiguous()
    assert spectrum.tokens[1, columns.shape[0] - 1, 4] == coefficients[1, 4, 0, -1]
    assert torch.equal(spectrum.plane(spectrum.tokens), coefficients)
    assert (spectrum.size, spectrum.positions) == (rows.shape[0] * columns.shape[0], 30)
