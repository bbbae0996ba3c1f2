"""Rows of the matrix of attention against the matrix itself, written out by tests/support."""

import pytest
import torch
from support import reference
from support.layers import BLOCKS, SIMILARITIES, opened

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention, attention_row
from fsanet.convert.grid import GridSelfAttention
from fsanet.errors import InputError

H, W = 7, 9
BANDS = {"4x4": (0, 4, 0, 4), "all": (0, H, 0, W), "no DC": (1, 5, 2, 6)}


def map_of(channels=12):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, channels, H, W, dtype=torch.float64, generator=generator)


@torch.no_grad()
def matrix(layer, x, band, round_):
    """The N x N weights of a round: keys, then queries."""
    layer.recurrence, rounds = round_ - 1, layer.recurrence
    x = reference.apply_block(x, layer, band, layer.norm)
    layer.recurrence = rounds
    low = x if band is None else reference.low_pass(x, band)
    return reference.weights(low.flatten(2), layer)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("band", [*BANDS, None])
def test_rows_of_the_matrix(similarity, block, bias, band):
    options = {"similarity": similarity, "block": block, "recurrence": 3, "qkv_bias": bias}
    if band is None:
        layer = SpatialSelfAttention(12, **options)
    else:
        h0, h1, w0, w1 = BANDS[band]
        layer = FrequencySelfAttention(12, k=((h0, h1), (w0, w1)), **options)
    layer, x = opened(layer).eval(), map_of()
    for round_ in (1, 2, 3):
        want = matrix(layer, x, BANDS.get(band), round_)
        for row, column in ((0, 0), (3, 4), (H - 1, 2)):
            got = attention_row(layer, x, (row, column), round_=round_)
            column_of_keys = want[:, :, row * W + column].unflatten(1, (H, W))
            difference = (got - column_of_keys).abs().max() / column_of_keys.abs().max()
            assert difference < 1e-10, (round_, row, column)


def test_the_row_gives_the_output():
    """The weighted sum of values is what the layer adds before its projection."""
    layer = opened(FrequencySelfAttention(12, k=4, similarity="softmax", norm=False)).eval()
    x = map_of()
    values = reference.project(layer.value, reference.low_pass(x, (0, 4, 0, 4)).flatten(2))
    row = attention_row(layer, x, (2, 5)).flatten(1)
    want = layer.out.weight @ (values @ row[..., None])[..., 0].mT
    torch.testing.assert_close((layer(x) - x)[:, :, 2, 5], want.mT)


def test_the_layer_is_left_as_it_was():
    layer = opened(FrequencySelfAttention(12, k=4, recurrence=2)).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    attention_row(layer, map_of(), (0, 0), round_=2)
    assert layer.recurrence == 2
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_half_precision_is_computed_in_float32():
    layer = FrequencySelfAttention(12, k=4, similarity="linear_softmax").to(torch.bfloat16)
    row = attention_row(layer, map_of().bfloat16(), (0, 0))
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.sum((1, 2)), torch.ones(2))


def test_wrong_input():
    layer, x = FrequencySelfAttention(12, k=4, recurrence=2), map_of().float()
    for message, arguments in [
        ("row=7", {"position": (7, 0)}),
        ("column=-1", {"position": (0, -1)}),
        ("round=3", {"position": (0, 0), "round_": 3}),
        (r"training mode; call eval", {"position": (0, 0), "round_": 2}),
    ]:
        with pytest.raises(InputError, match=message):
            attention_row(layer, x, **arguments)
    with pytest.raises(InputError, match="GridSelfAttention: rows are known"):
        attention_row(GridSelfAttention(12, grid=3, k=4), x, (0, 0))
