"""Which modules are converted, into what, and what is left alone."""

import copy

import pytest
import torch
from support import reference
from torch import nn

from fsanet import FrequencySelfAttention, SpatialSelfAttention, convert_attention
from fsanet.convert import KINDS, Kind
from fsanet.convert.grid import GridSelfAttention
from fsanet.errors import InputError


def layer(similarity="softmax", channels=6, **options):
    made = SpatialSelfAttention(channels, similarity=similarity, zero_init=False, **options)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.7)
    return made.double().eval()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = layer(), layer("dot")
        self.mix = nn.Conv2d(6, 6, 1, dtype=torch.float64)

    def forward(self, x):
        return self.second(self.mix(self.first(x)))


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax", "linear", "softmax"])
@pytest.mark.parametrize(
    "options", [{}, {"block": "ccnet", "recurrence": 2}, {"qkv_bias": True, "norm": False}]
)
def test_spatial_layer_becomes_itself_on_the_low_passed_map(similarity, options):
    torch.manual_seed(0)
    original = layer(similarity, scale=0.3 if similarity == "softmax" else None, **options)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    converted = convert_attention(original, k=(3, 4)).model
    assert type(converted) is FrequencySelfAttention
    if similarity != "softmax":  # the reference takes the scale from the channels
        norm = copy.deepcopy(original.norm)
        expected = reference.apply_block(x, original, (0, 3, 0, 4), norm)
        torch.testing.assert_close(converted(x), expected, rtol=1e-9, atol=1e-10)
    full = convert_attention(original, k=None).model
    torch.testing.assert_close(full(x), original(x), rtol=1e-10, atol=1e-10)
    low = reference.low_pass(x, (0, 3, 0, 4))
    if original.recurrence == 1:
        torch.testing.assert_close(converted(x) - x, original(low) - low, rtol=1e-10, atol=1e-10)


def test_same_state_and_original_untouched():
    network = Pair()
    before = copy.deepcopy(network.state_dict())
    found = convert_attention(network, k=3)
    assert [m.name for m in found.modules] == ["first", "second"]
    assert [m.similarity for m in found.modules] == ["softmax", "dot"]
    assert type(network.first) is SpatialSelfAttention
    assert type(found.model.first) is FrequencySelfAttention
    assert found.model.state_dict().keys() == before.keys()
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():  # the copy has weights of its own
        found.model.first.query.weight.zero_()
    assert torch.equal(network.first.query.weight, before["first.query.weight"])


def test_in_place_keeps_parameters_and_modes():
    network = Pair()
    network.first.train()
    network.first.query.weight.requires_grad_(False)
    weight = network.first.query.weight
    found = convert_attention(network, k=2, match="first", in_place=True)
    assert found.model is network
    assert network.first.query.weight is weight  # an optimiser still holds it
    assert network.first.training
    assert not network.second.training
    assert type(network.second) is SpatialSelfAttention
    assert found.modules[0].as_dict()["k"] == 2
    with pytest.raises(InputError, match="in place"):
        convert_attention(layer(), in_place=True)


def test_k_by_pattern():
    found = convert_attention(Pair(), k={"sec*": ((0, 2), (1, None)), "*": 5})
    assert found.model.first.band == (0, 5, 0, 5)
    assert found.model.second.band == (0, 2, 1, None)
    assert found.modules[1].as_dict()["k"] == [[0, 2], [1, None]]
    left = convert_attention(Pair(), k={"second": 3})
    assert [m.name for m in left.modules] == ["second"]
    assert type(left.model.first) is SpatialSelfAttention


def test_module_at_two_names_is_replaced_at_both():
    network = Pair()
    network.second = network.first
    found = convert_attention(network, k=2)
    assert found.model.second is found.model.first
    assert type(found.model.second) is FrequencySelfAttention


def test_another_similarity_and_the_grid():
    network = Pair()
    found = convert_attention(network, k=3, similarity="linear", match="first")
    assert found.model.first.similarity == found.modules[0].similarity == "linear"
    grid = convert_attention(network, k=3, match="first", route="grid", grid=4)
    assert type(grid.model.first) is GridSelfAttention
    assert grid.modules[0].grid == 4
    with pytest.raises(InputError, match="route='grid' is for softmax"):
        convert_attention(network, k=3, route="grid")  # "second" is a dot product


class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x):
        return x


def test_further_kind():
    def convert(module, network, options):
        return FrequencySelfAttention(module.width, k=options.k, zero_init=False)

    own = Kind("Own", lambda module: isinstance(module, Own), convert)
    network = nn.Sequential(Own(4), nn.ReLU())
    found = convert_attention(network, k=2, kinds=(own, *KINDS))
    assert found.model[0].band == (0, 2, 0, 2)
    assert str(found).splitlines()[1].split()[:3] == ["0", "Own", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"match": "third*"},
            "match: 'third\\*' matches no attention .* there are first, second",
        ),
        ({"k": {"first": 3, "x*": 4}}, "k: 'x\\*' matches no attention"),
        ({"k": 0}, "at least 1 row frequency"),
        ({"route": "map"}, "route='map': use 'tokens' or 'grid'"),
        ({"similarity": "cosine"}, "similarity='cosine': use one of"),
        ({"route": "grid", "grid": 0}, "grid=0: give the points per side"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        convert_attention(Pair(), **arguments)


def test_nothing_to_convert():
    with pytest.raises(InputError, match="Sequential has no attention to convert; supported are"):
        convert_attention(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_flops_are_those_of_hand_sums():
    """N x N attention against coefficients: 2 a multiply-add, products only."""
    c, d, height, width, k = 6, 3, 20, 30, 4
    n, kept = height * width, k * k
    found = convert_attention(layer("softmax", c), k=k, similarity="dot")
    flops = found.flops((height, width), channels=c)
    assert flops.before == 2 * n * c * d * 4 + 2 * 2 * n * n * d
    transform = c * (k * n + k * k * width)  # along the rows first, then the columns
    inside = 4 * kept * c * d + min(2 * kept * kept * d, 2 * kept * d * d)
    assert flops.after == 2 * (2 * transform + inside)
    assert flops.modules == {"": (flops.before, flops.after)}
    pair = convert_attention(Pair(), k=2).flops((8, 8), channels=6)
    rest = {
        which: flops - sum(m[which] for m in pair.modules.values())
        for which, flops in enumerate((pair.before, pair.after))
    }
    assert rest[0] == rest[1] == 2 * 64 * 6 * 6  # the 1x1 convolution between
    with pytest.raises(InputError, match="does not take a 3x8x8 image"):
        found.flops(8)


def test_table_names_module_band_and_operations():
    lines = convert_attention(Pair(), k={"first": 3, "second": None}).table((16, 16), channels=6)
    lines = lines.splitlines()
    assert lines[1].split()[:5] == ["first", "SpatialSelfAttention", "3", "softmax", "all"]
    assert lines[2].split()[:4] == ["second", "SpatialSelfAttention", "all", "dot"]
    assert lines[3].startswith("network at 16x16: ")


@pytest.mark.parametrize("similarity", ["softmax", "dot", "linear_softmax"])
def test_a_smaller_band_of_frequency_attention(similarity):
    """Twice low-passed is low-passed to the smaller band, with the same weights."""
    network = nn.Sequential(layer(similarity))
    wide = convert_attention(network, k=((0, 6), (0, 5)))
    narrow = convert_attention(wide.model, k=3)
    x = torch.randn(1, network[0].channels, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        got, want = narrow.model.double()(x), convert_attention(network, k=3).model.double()(x)
    assert torch.equal(got, want)
    assert narrow.modules[0].kind == "FrequencySelfAttention"
    with pytest.raises(InputError, match=r"0: .*sees the frequencies \[0:6\) x \[0:5\) alone"):
        convert_attention(wide.model, k=6)


def test_frequency_attention_stays_while_there_is_regular_attention():
    half = convert_attention(Pair(), k=3, match="first").model
    assert [m.name for m in convert_attention(half, k=8).modules] == ["second"]


@pytest.mark.parametrize("similarity", ["softmax", "dot", "linear_softmax", "linear"])
@pytest.mark.parametrize("size", [(3, 4), (5, 8), (20, 30)])
def test_a_band_over_the_whole_map_costs_no_more(similarity, size):
    network = layer(similarity, 12).double().eval()
    found = convert_attention(network, k=32)
    flops = found.flops(size, channels=12)
    assert flops.after <= flops.before
    x = torch.randn(2, 12, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), network(x), rtol=1e-10, atol=1e-10)
