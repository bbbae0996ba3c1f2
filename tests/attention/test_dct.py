import numpy as np
import pytest
import scipy.fft
import torch

from fsanet.attention.dct import (
    Band,
    analyse,
    dct_bases,
    dct_basis,
    dense_basis,
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
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_analysis_and_synthesis_against_scipy(band, memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 13, 9, dtype=torch.float64).contiguous(memory_format=memory_format)
    band = Band(*band)
    rows, columns = dct_bases(x, band)
    c = analyse(x, rows, columns)
    full = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(
        c.numpy(), full[..., band.h0 : band.h1, band.w0 : band.w1], atol=1e-12
    )
    kept = np.zeros_like(full)
    kept[..., band.h0 : band.h1, band.w0 : band.w1] = c.numpy()
    low = scipy.fft.idctn(kept, type=2, norm="ortho", axes=(-2, -1))
    np.testing.assert_allclose(synthesise(c, rows, columns).numpy(), low, atol=1e-12)
    constant = torch.randn(2, 5, dtype=torch.float64)
    y = synthesise(c, rows, columns, residual=x, constant=constant)
    np.testing.assert_allclose(
        y.numpy(), x.numpy() + low + constant.numpy()[..., None, None], atol=1e-12
    )
    assert y.is_contiguous(memory_format=memory_format)


def test_dense_basis_is_the_separable_one():
    x = torch.randn(1, 3, 6, 11, dtype=torch.float64)
    rows, columns = dct_bases(x, Band(0, 4, 1, 5))
    dense = dense_basis(rows, columns)
    torch.testing.assert_close(
        x.flatten(2) @ dense, analyse(x, rows, columns).flatten(2), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(dense.T @ dense, torch.eye(16, dtype=torch.float64))


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
def test_band_that_makes_no_sense(k, message):
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


def test_basis_born_in_inference_mode_or_a_transform_serves_training():
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
