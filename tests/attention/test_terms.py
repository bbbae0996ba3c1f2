"""Terms added to the map row by row, against the dense basis."""

import pytest
import torch

from fsanet.attention.dct import dct_basis, dense_basis
from fsanet.attention.linear import Term
from fsanet.attention.spectrum import Grid
from fsanet.attention.terms import add_rows, add_terms

B, C, H, W = 2, 5, 6, 7


def case(extended, second):
    """Two rounds of terms, and the map they stand for, by the N x K' basis."""
    kwargs = {"dtype": torch.float64, "device": torch.device("cpu")}
    grid = Grid(dct_basis(H, 1, 4, **kwargs), dct_basis(W, 0, 2, **kwargs), extended)
    p = dense_basis(grid.rows, grid.columns)
    if extended:
        p = torch.cat([p, torch.full((H * W, 1), (H * W) ** -0.5)], 1)
    torch.manual_seed(0)
    terms, total = [], torch.zeros(B, C, H, W, dtype=torch.float64)
    for _ in range(2):
        a = torch.randn(B, p.shape[1], C, dtype=torch.float64)
        first, other = torch.rand(2, B, H, W, dtype=torch.float64)
        b = torch.randn(B, C, dtype=torch.float64)
        terms.append(Term(a, first, b, other) if second else Term(a, first))
        total += (p @ a).mT.unflatten(2, (H, W)) * first[:, None]
        total += b[:, :, None, None] * other[:, None] if second else 0
    return grid, terms, total


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_against_the_dense_basis(extended, second, constant, memory_format):
    grid, terms, total = case(extended, second)
    x = torch.randn(B, C, H, W, dtype=torch.float64).to(memory_format=memory_format)
    shift = torch.randn(C, dtype=torch.float64) if constant else None
    want = x + total + (shift[:, None, None] if constant else 0)
    before = x.clone()
    got = add_terms(x, terms, grid, shift)
    torch.testing.assert_close(got, want)
    assert torch.equal(x, before)
    assert got.is_contiguous(memory_format=memory_format)


def test_strided_and_half_precision_maps():
    grid, terms, total = case(False, True)
    wide = torch.randn(B, C, H, 2 * W, dtype=torch.float64)
    torch.testing.assert_close(add_terms(wide[..., ::2], terms, grid, None), wide[..., ::2] + total)
    x = torch.randn(B, C, H, W, dtype=torch.bfloat16)
    got = add_terms(x, terms, grid, None)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, (x + total).bfloat16(), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("batch", [0, 2])
def test_first_and_second_derivatives(batch):
    x = torch.randn(batch, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    left = torch.randn(batch, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    right = torch.randn(batch, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    want = x + torch.einsum("bhjc,bhjw->bchw", left, right)
    torch.testing.assert_close(add_rows(x, left, right), want)
    if batch:
        assert torch.autograd.gradcheck(add_rows, (x, left, right))
        assert torch.autograd.gradgradcheck(add_rows, (x, left, right), fast_mode=True)
