import numpy as np
import pytest
import scipy.fft
import torch
from support import reference

from fsanet.attention.dct import (
    Band,
    Basis,
    analyse,
    autocast_dtype,
    dct_bases,
    dct_basis,
    dense_basis,
    full_precision,
    synthesise,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 5, 8, 97, 1024])
def test_basis_is_scipys_orthonormal_dct(size):
    ours = dct_basis(size, 0, size, dtype=torch.float64, device=CPU).numpy()
    theirs = scipy.fft.dct(np.eye(size), type=2, norm="ortho", axis=0)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    np.testing.assert_allclose(ours @ ours.T, np.eye(size), atol=1e-12)


def test_basis_of_a_huge_axis_keeps_float32_accuracy():
    size, u = 100_000, 99_999
    row = dct_basis(size, u, u + 1, dtype=torch.float32, device=CPU).double()
    i = np.arange(size, dtype=np.longdouble)
    exact = np.sqrt(2 / np.longdouble(size)) * np.cos(
        np.pi * ((u * (2 * i + 1)) % (4 * size)) / (2 * size)
    )
    assert np.abs(row.numpy()[0] - exact).max() < 1e-9


@pytest.mark.parametrize("band", [(0, 8, 0, 8), (0, 3, 0, 7), (2, 6, 1, 9), (0, 13, 0, 9)])
def test_analysis_and_synthesis_against_scipy(band):
    x = torch.randn(2, 5, 13, 9, dtype=torch.float64)
    rows, columns = dct_bases(x, Band(*band))
    h0, h1, w0, w1 = band
    c = analyse(x, rows, columns)
    want = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1))[..., h0:h1, w0:w1]
    np.testing.assert_allclose(c.numpy(), want, atol=1e-12)
    torch.testing.assert_close(synthesise(c, rows, columns), reference.low_pass(x, band))


def test_dense_basis_is_the_separable_one():
    got = dense_basis(reference.dct_rows(6, 0, 4), reference.dct_rows(11, 1, 5))
    want = reference.dense_basis(reference.dct_rows(6, 0, 4), reference.dct_rows(11, 1, 5))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("k", [3, ((1, 3), (0, 2))])
def test_basis(k):
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    basis = Basis.of(x, Band.of(k))
    tokens = basis.to_tokens(analyse(x, basis.rows, basis.columns))
    dense = reference.dense_basis(basis.rows, basis.columns)
    torch.testing.assert_close(tokens, (x.flatten(2) @ dense).mT)
    assert (basis.grid, basis.positions, basis.frequencies) == ((6, 7), 42, dense.shape[1])
    torch.testing.assert_close(
        synthesise(basis.to_plane(tokens), basis.rows, basis.columns).flatten(2),
        tokens.mT @ dense.T,
    )
    value = torch.randn(5, dtype=torch.float64)
    if not basis.has_dc:
        assert basis.constant_index is None
        with pytest.raises(ValueError, match="without the constant"):
            basis.constant(value)
        basis = basis._replace(extended=True)
        dense = reference.dense_basis(basis.rows, basis.columns, extended=True)
    assert basis.pad(tokens).shape == (2, basis.size, 5) == (2, dense.shape[1], 5)
    torch.testing.assert_close(
        dense @ basis.constant(value)[0], value.expand(42, 5), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (8, (0, 8, 0, 8)),
        ((3, 5), (0, 3, 0, 5)),
        ([[0, 5], [2, None]], (0, 5, 2, None)),
        ((range(4, 8), range(8)), (4, 8, 0, 8)),
        (None, (0, None, 0, None)),
        (Band(1, 2, 3, 4), (1, 2, 3, 4)),
    ],
)
def test_band_of(k, expected):
    assert tuple(Band.of(k)) == expected


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, "at least 1 row"),
        (-3, "at least 1 row"),
        ((4, 0), "at least 1 column"),
        (((5, 5), (0, 8)), "row range 5:5 is empty"),
        (((-1, 5), (0, 8)), "row range -1:5 is empty or negative"),
        (((0, 5), (8, 2)), "column range 8:2"),
        ((1, 2, 3), "not a band"),
        ("8", "not a band"),
        (2.5, "not a band"),
        (True, "not a band"),
        ((True, 2), "neither a count nor a range"),
        ((range(0, 8, 2), 4), "neither a count nor a range"),
    ],
)
def test_invalid_band(k, message):
    with pytest.raises(ValueError, match=message):
        Band.of(k)


def test_clip():
    assert Band.of(12).clip(8, 16) == (0, 8, 0, 12)
    assert Band.of(None).clip(8, 16) == (0, 8, 0, 16)
    with pytest.raises(
        ValueError, match=r"band \[8:12\) x \[0:4\) lies outside .* 8x16 feature map"
    ):
        Band.of(((8, 12), (0, 4))).clip(8, 16)


def test_cache_is_keyed_by_all_that_matters():
    x = torch.zeros(1, 1, 6, 6)
    a = dct_bases(x, Band.of(4).clip(6, 6))
    assert dct_bases(x, Band.of(4).clip(6, 6))[0] is a[0]
    assert dct_bases(x.double(), Band.of(4).clip(6, 6))[0].dtype == torch.float64
    assert dct_bases(x.bfloat16(), Band.of(4).clip(6, 6))[0].dtype == torch.float32
    assert dct_bases(x.to("meta"), Band.of(4).clip(6, 6))[0].device.type == "meta"
    assert dct_bases(torch.zeros(1, 1, 7, 6), Band.of(4).clip(7, 6))[0].shape == (4, 7)


def test_full_precision_switches_autocast_off():
    x = torch.randn(2, 2)
    assert autocast_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(x) == torch.bfloat16
        assert autocast_dtype(x.to("meta")) == torch.float32
        with full_precision(x):
            assert (x @ x).dtype == autocast_dtype(x) == torch.float32


def test_basis_made_in_inference_mode_or_a_transform_serves_training():
    def loss(x):
        rows, columns = dct_bases(x, Band(0, 3, 0, 3))
        return synthesise(analyse(x, rows, columns), rows, columns).square().sum()

    with torch.inference_mode():
        loss(torch.randn(1, 1, 23, 29))
    torch.func.grad(loss)(torch.randn(1, 1, 31, 37))
    torch.func.vmap(loss)(torch.randn(2, 1, 1, 41, 43))
    for size in ((23, 29), (31, 37), (41, 43)):
        x = torch.randn(1, 1, *size, requires_grad=True)
        loss(x).backward()
        assert x.grad.abs().sum() > 0
