"""Sums over positions, and the factors of the output, against the dense N x K' basis."""

import pytest
import torch
from support.reference import dct_rows, dense_basis

from fsanet.attention import linear
from fsanet.attention.dct import Basis
from fsanet.attention.linear import ScaledMap, row_factors

B, C, H, W = 2, 5, 6, 7


BASES = {
    "with DC": ((0, 3), (0, 4), False),
    "one row": ((0, 1), (0, 5), False),
    "no DC": ((1, 4), (2, 4), False),
    "no DC, first row": ((0, 3), (1, 4), False),
    "extended": ((1, 4), (2, 4), True),
}


@pytest.fixture(params=BASES)
def basis(request):
    rows, columns, extended = BASES[request.param]
    has_dc = rows[0] == columns[0] == 0
    return Basis(dct_rows(H, *rows), dct_rows(W, *columns), has_dc, extended)


@pytest.fixture
def dense(basis):
    return dense_basis(basis.rows, basis.columns, basis.extended)  # (N, K')


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_sums_over_positions(basis, dense):
    c, g = random(B, basis.size), random(B, H, W)
    half = random(B, basis.size, 7)
    gram = half @ half.mT
    close = torch.testing.assert_close
    close(linear._to_map(c, basis), (c @ dense.T).view(B, H, W))
    close(linear._to_coefficients(g, basis), g.flatten(1) @ dense)
    quadratic = torch.einsum("pa,bac,pc->bp", dense, gram, dense)
    close(linear._quadratic(gram, basis), quadratic.view(B, H, W))
    weighted = torch.einsum("pa,bp,pc->bac", dense, g.flatten(1), dense)
    close(linear._weighted_gram(g, basis), weighted)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_row_factors(basis, dense, offset, constant):
    maps, want = [], torch.zeros(B, C, H, W, dtype=torch.float64)
    for _ in range(2):
        c, scale = random(B, basis.size, C), random(B, H, W)
        added, added_scale = random(B, C), random(B, H, W)
        maps.append(ScaledMap(c, scale, added, added_scale) if offset else ScaledMap(c, scale))
        want += (dense @ c).mT.unflatten(2, (H, W)) * scale[:, None]
        if offset:
            want += added[:, :, None, None] * added_scale[:, None]
    shift = random(C) if constant else None
    if constant:
        want += shift[:, None, None]
    left, right = row_factors(maps, basis, shift)
    torch.testing.assert_close(torch.einsum("bhjc,bhjw->bchw", left, right), want)
    per_map = basis.columns.shape[0] + basis.extended + offset
    assert left.shape[2] == right.shape[2] == 2 * per_map + constant


@pytest.mark.parametrize("offset", [False, True])
def test_statistics_of_a_scaled_map(basis, dense, offset):
    """Mean and spread per image, with a scale far from zero that would cancel if not centred."""
    c, scale = random(B, basis.size, C), random(B, H, W) + 1000
    added, added_scale = random(B, C), random(B, H, W) + 1000
    out = ScaledMap(c, scale, added, added_scale) if offset else ScaledMap(c, scale)
    y = (dense @ c) * scale.flatten(1)[..., None]  # (B, N, C)
    if offset:
        y = y + added_scale.flatten(1)[..., None] * added[:, None]
    mean, energy, positions = linear._statistics(out, basis)()
    assert positions == H * W
    torch.testing.assert_close(mean, y.mean(1))
    torch.testing.assert_close(energy, (y - y.mean(1, keepdim=True)).square().sum(1))


def test_statistics_do_not_follow_a_large_scale_where_the_basis_vanishes():
    basis = Basis(dct_rows(11, 0, 7), dct_rows(7, 5, 6), False)
    dense, c = dense_basis(basis.rows, basis.columns), random(B, 7, C)
    scale = torch.where(basis.columns.abs() < 1e-15, 1e7, 1 + random(B, 11, 7).abs())
    assert (scale == 1e7).sum() == B * 11  # the middle column
    y = (dense @ c) * scale.flatten(1)[..., None]  # (B, N, C)
    mean, energy, _ = linear._statistics(ScaledMap(c, scale), basis)()
    torch.testing.assert_close(mean, y.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        energy, (y - y.mean(1, keepdim=True)).square().sum(1), rtol=1e-12, atol=0
    )
