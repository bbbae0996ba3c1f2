"""Non-local blocks with MMSegmentation's names, against the block written out."""

import copy

import pytest
import torch
from support import reference
from torch import nn

from fsanet import FrequencySelfAttention, convert_attention
from fsanet.errors import InputError


class Unit(nn.Module):
    """A convolution, named ``conv``, and a batch norm, named ``bn``, or none."""

    def __init__(self, inner, outer, norm=False, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 1, bias=bias)
        if norm:
            self.bn = nn.BatchNorm2d(outer)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) if hasattr(self, "bn") else x


class NonLocal(nn.Module):
    """From the published facts: softmax of theta^T phi (over d's root if scaled), or dot / N."""

    def __init__(self, channels=6, inner=4, mode="embedded_gaussian", use_scale=True, **out):
        super().__init__()
        self.mode, self.use_scale = mode, use_scale
        self.theta, self.phi, self.g = (Unit(channels, inner) for _ in range(3))
        self.conv_out = Unit(inner, channels, **{"norm": True, "bias": False, **out})

    def attended(self, x):
        theta, phi, g = (unit(x).flatten(2) for unit in (self.theta, self.phi, self.g))
        weights = theta.mT @ phi  # (B, N queries, N keys)
        if self.mode == "dot_product":
            weights = weights / x.shape[2] / x.shape[3]
        else:
            weights = (weights / (theta.shape[1] ** 0.5 if self.use_scale else 1)).softmax(-1)
        return self.conv_out((weights @ g.mT).mT.unflatten(2, x.shape[2:]))

    def forward(self, x):
        return x + self.attended(x)


def block(**options):
    torch.manual_seed(1)
    made = NonLocal(**options).double().eval()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                value.copy_(
                    torch.rand_like(value) + 0.3 if "var" in name else torch.randn_like(value)
                )
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_scale": False},
        {"mode": "dot_product"},
        {"norm": False, "bias": True},  # a bias after the projection
        {"norm": True, "bias": True},  # a bias before the norm
    ],
)
def test_block_on_the_low_passed_map(options):
    original = block(**options)
    before = copy.deepcopy(original.state_dict())
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    found = convert_attention(nn.Sequential(original), k=3)
    assert type(found.model[0]) is FrequencySelfAttention
    low = reference.low_pass(x, (0, 3, 0, 3))
    expected = x + original.attended(low)
    torch.testing.assert_close(found.model(x), expected, rtol=1e-9, atol=1e-10)
    full = convert_attention(original, k=None).model
    torch.testing.assert_close(full(x), original(x), rtol=1e-9, atol=1e-10)
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_dropped_biases():
    """The published way: the trained maps, without their biases."""
    original = block()
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    dropped = convert_attention(original, k=4, drop_biases=True).model
    kept = convert_attention(original, k=4).model
    assert not dropped.qkv_bias
    assert kept.qkv_bias
    plain = copy.deepcopy(original)
    for unit in (plain.theta, plain.phi, plain.g):
        nn.init.zeros_(unit.conv.bias)
    low = reference.low_pass(x, (0, 4, 0, 4))
    torch.testing.assert_close(dropped(x), x + plain.attended(low), rtol=1e-9, atol=1e-10)
    assert (dropped(x) - kept(x)).abs().max() > 1e-3


def test_without_attributes_the_defaults_of_the_published_block():
    original = block(use_scale=True)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    expected = original(x)
    del original.mode, original.use_scale
    full = convert_attention(original, k=None).model
    torch.testing.assert_close(full(x), expected, rtol=1e-9, atol=1e-10)


def test_gradient_reaches_the_same_weights():
    original = block()
    original.theta.conv.weight.requires_grad_(False)
    converted = convert_attention(original, k=3).model
    assert not converted.query.weight.requires_grad
    assert converted.value.weight.requires_grad
    converted(torch.randn(1, 6, 5, 5, dtype=torch.float64)).sum().backward()
    assert converted.out.weight.grad.abs().max() > 0


def test_blocks_that_cannot_be_converted():
    with pytest.raises(InputError, match=r"0: a non-local block of mode 'concatenation'"):
        convert_attention(nn.Sequential(block(mode="concatenation")))
    pooled = block()
    pooled.phi = nn.Sequential(pooled.phi, nn.MaxPool2d(2))
    with pytest.raises(InputError, match=r"phi: not a plain 1x1 convolution"):
        convert_attention(pooled)
    wide = block()
    wide.g.conv = nn.Conv2d(6, 4, 3, padding=1)
    with pytest.raises(InputError, match=r"g: not a plain 1x1 convolution"):
        convert_attention(wide)
