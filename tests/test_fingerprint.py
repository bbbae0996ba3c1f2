from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fsanet.attention import FrequencySelfAttention
from fsanet.fingerprint import about_model, fingerprint


class Net(nn.Module):
    classes: tuple[str, ...] = ("sky", "road")
    mean = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = FrequencySelfAttention(8, k=4)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))


def nudge(net: Net) -> None:
    with torch.no_grad():
        net.norm.weight[3] = torch.nextafter(net.norm.weight[3], torch.tensor(2.0))


def swap(net: Net) -> None:
    net.attention = FrequencySelfAttention(8, k=5)
    net.attention.load_state_dict(Net().attention.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        nudge,
        swap,
        lambda net: net.norm.running_mean.fill_(1e-30),
        lambda net: setattr(net, "classes", ("sky", "Road")),
        lambda net: setattr(net, "mean", (0.5, 0.5, 0.25)),
        lambda net: setattr(net, "scale", nn.Parameter(net.scale.float())),
        lambda net: setattr(net, "_hub_mixin_config", {"align_corners": True}),
    ],
    ids=["last bit of a weight", "k alone", "buffer", "class", "mean", "dtype", "option"],
)
def test_any_difference_shows(change: Callable[[Net], object]) -> None:
    net = Net()
    change(net)
    assert fingerprint(net) != fingerprint(Net())


def test_equal_networks_are_equal() -> None:
    net = Net()
    expected = fingerprint(net)
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    assert fingerprint(copy.deepcopy(net).eval()) == fingerprint(Net().train()) == expected
    about = about_model(net)
    assert about["fingerprint"] == expected
    assert about["parameters"] == sum(p.numel() for p in net.parameters())
