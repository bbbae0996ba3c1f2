import pytest
import scipy.fft
import torch
from support.layers import opened, relative_error
from support.reference import apply_block, low_pass
from torch import nn

from fsanet import BandTreatments, FrequencySelfAttention

X = torch.randn(2, 8, 11, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def band_change(x, layer, band, size=X.shape[-2:]):
    """What attention on one band adds to the map, by the plain reference."""
    h0, h1, w0, w1 = band
    band = (h0, size[0] if h1 is None else h1, w0, size[1] if w1 is None else w1)
    norm = None if layer.norm is None else layer.norm.eval()
    with torch.no_grad():
        # the reference layer sees the whole map; its low-pass picks the band
        return apply_block(x, layer, band, norm) - x


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax", "softmax"])
@pytest.mark.parametrize("block", ["nonlocal", "ccnet"])
@pytest.mark.parametrize("rest", ["identity", "drop"])
def test_every_treatment_at_once(similarity, block, rest):
    low = opened(FrequencySelfAttention(8, similarity=similarity, block=block), 1).eval()
    middle = opened(FrequencySelfAttention(8, similarity=similarity, block=block), 2).eval()
    conv = nn.Conv2d(8, 8, 1, groups=4, bias=False).double()
    layer = BandTreatments(
        [
            (3, low),
            (((0, 3), (3, 7)), middle),
            (((3, 6), (0, 7)), conv),
            (((6, 9), (0, 5)), "drop"),
            (((6, 9), (5, None)), "identity"),
        ],
        rest=rest,
    )
    got = layer(X).detach()
    conv_band = low_pass(X, (3, 6, 0, 7))
    dropped = low_pass(X, (6, 9, 0, 5))
    want = X + band_change(X, low, (0, 3, 0, 3)) + band_change(X, middle, (0, 3, 3, 7))
    want = want + (conv(conv_band) - conv_band).detach() - dropped
    if rest == "drop":
        covered = low_pass(X, (0, 3, 0, 7)) + conv_band + dropped + low_pass(X, (6, 9, 5, 14))
        want = want - (X - covered)
    assert relative_error(got, want) <= 1e-10


def test_building_up_equals_taking_away():
    conv = nn.Conv2d(8, 8, 1, groups=8, bias=False).double()
    attention = opened(FrequencySelfAttention(8)).eval()
    a = BandTreatments([(4, attention), (((4, 8), (0, 8)), conv)], rest="drop")
    b = BandTreatments(
        [
            (4, attention),
            (((4, 8), (0, 8)), conv),
            (((0, 4), (4, None)), "drop"),
            (((4, 8), (8, None)), "drop"),
            (((8, None), (0, None)), "drop"),
        ],
        rest="identity",
    )
    torch.testing.assert_close(a(X), b(X))


def test_grouped_convolution_commutes_with_the_transform():
    conv = nn.Conv2d(8, 8, 1, groups=2, bias=False).double()
    layer = BandTreatments([(None, conv)], rest=None)
    torch.testing.assert_close(layer(X), conv(X))


def test_identity_and_drop():
    torch.testing.assert_close(BandTreatments([(4, "identity")])(X), X, rtol=0, atol=0)
    torch.testing.assert_close(
        BandTreatments([(4, "identity")], rest="drop")(X), low_pass(X, (0, 4, 0, 4))
    )
    torch.testing.assert_close(BandTreatments([(4, "drop")])(X), X - low_pass(X, (0, 4, 0, 4)))
    assert BandTreatments([(4, "drop")], rest="drop")(X).abs().max() == 0


def test_single_attention_band_is_the_layer_itself():
    attention = opened(FrequencySelfAttention(8, k=4, recurrence=2)).eval()
    torch.testing.assert_close(BandTreatments([(4, attention)])(X), attention(X))


def test_weights_are_shared_when_the_module_is():
    attention = opened(FrequencySelfAttention(8, norm=False))
    layer = BandTreatments([(3, attention), (((0, 3), (3, 6)), attention)])
    assert len(list(layer.parameters())) == len(list(attention.parameters()))
    want = X + band_change(X, attention, (0, 3, 0, 3)) + band_change(X, attention, (0, 3, 3, 6))
    torch.testing.assert_close(layer(X).detach(), want)
    layer(X).sum().backward()
    both = attention.query.weight.grad.clone()
    for band in (3, ((0, 3), (3, 6))):  # each band's share of the gradient
        attention.zero_grad()
        BandTreatments([(band, attention)])(X).sum().backward()
        both -= attention.query.weight.grad
    torch.testing.assert_close(both, torch.zeros_like(both))


def test_bands_beyond_a_small_map_do_nothing():
    attention = opened(FrequencySelfAttention(8)).eval()
    layer = BandTreatments([(3, "identity"), (((8, None), (0, None)), attention)])
    x = X[..., :5, :6]
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)


def test_energy_of_a_dropped_band_is_gone():
    y = BandTreatments([(((2, 5), (1, 3)), "drop")])(X)
    before, after = (scipy.fft.dctn(m.numpy(), norm="ortho", axes=(-2, -1)) for m in (X, y))
    before[..., 2:5, 1:3] = 0
    assert abs(after - before).max() < 1e-12


def test_half_precision():
    layer = BandTreatments([(3, FrequencySelfAttention(8, zero_init=False))], rest="drop").eval()
    assert layer(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("treatments", "rest", "message"),
    [
        (
            [(8, "drop"), (((4, 12), (6, 12)), "identity")],
            "identity",
            r"frequencies \[4:8\) x \[6:8\) .* covered twice: by band 0 .* and by band 1",
        ),
        (
            [(((0, None), (0, 4)), "drop"), (((2, None), (0, None)), "drop")],
            "identity",
            r"frequencies \[2:\) x \[0:4\) .* covered twice",
        ),
        ([(8, "drop")], None, r"frequencies \[0:8\) x \[8:\) .* are covered by no band"),
        ([], "identity", "no band is given"),
        ([(8, "blur")], "identity", "'blur' is not a treatment"),
        ([(8, nn.Conv2d(4, 4, 3))], "identity", "kernel 1"),
        ([(8, nn.Conv2d(4, 4, 1))], "identity", "bias=False"),
        ([(8, nn.Linear(4, 4))], "identity", "is not a treatment"),
        ([(0, "drop")], "identity", "at least 1 row"),
        ([(8, "drop")], "blur", "rest='blur'"),
    ],
)
def test_invalid_cuts(treatments, rest, message):
    with pytest.raises(ValueError, match=message):
        BandTreatments(treatments, rest=rest)


def test_bands_that_cover_the_plane_need_no_rest():
    layer = BandTreatments(
        [(8, "drop"), (((0, 8), (8, None)), "drop"), (((8, None), (0, None)), "identity")],
        rest=None,
    )
    torch.testing.assert_close(layer(X), low_pass(X, (8, 11, 0, 14)))
