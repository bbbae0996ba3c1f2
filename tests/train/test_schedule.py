from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from fsanet import FsaNet
from fsanet.train import SemanticSegmentation
from fsanet.train.schedule import milestone_factor, parameter_groups, polynomial_rate


def test_rates_by_hand():
    options = {"base": 0.1, "total_steps": 110, "minimum": 0.01, "warmup_steps": 10}
    options |= {"power": 0.9, "warmup_ratio": 0.1}
    expected = {0: 0.01, 5: 0.055, 10: 0.1, 60: 0.01 + 0.09 * 0.5**0.9, 110: 0.01, 500: 0.01}
    for step, rate in expected.items():
        assert polynomial_rate(step, **options) == pytest.approx(rate)


def test_rate_rises_then_drops_at_the_milestones():
    options = {"milestones": (0.5, 0.8), "decay": 0.1, "warmup_steps": 10, "warmup_ratio": 0.1}
    rates = [milestone_factor(step, total_steps=100, **options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10] == rates[49] == 1
    assert rates[50] == rates[79] == pytest.approx(0.1)
    assert rates[80] == rates[99] == pytest.approx(0.01)


def test_every_group_follows_its_own_base_to_one_minimum():
    options = {"lr": 0.1, "head_lr_multiplier": 10.0, "min_lr": 0.02, "warmup_steps": 4}
    task = SemanticSegmentation(Network(), classes=("a", "b"), **options)
    task.total_steps = 20
    configured = task.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for step in range(21):
        for group, base in zip(optimizer.param_groups, (0.1, 1.0), strict=True):
            progress = (step - 4) / 16
            expected = (
                base * (1e-3 + 0.999 * step / 4)
                if step < 4
                else 0.02 + (base - 0.02) * (1 - progress) ** 0.9
            )
            assert group["lr"] == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        schedule.step()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 1, 1)
        self.out_bias = nn.Parameter(torch.zeros(1, 4, 1))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def names_in(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["name"]: (
            {names[id(parameter)] for parameter in group["params"]},
            group["lr"],
            group["weight_decay"],
        )
        for group in groups
    }


def test_groups():
    model = Network()
    groups = parameter_groups(
        model, lr=0.1, weight_decay=0.5, head_lr_multiplier=10, decay_norms=False
    )
    assert names_in(model, groups) == {
        "encoder": ({"encoder.0.weight"}, 0.1, 0.5),
        "encoder without decay": (
            {"encoder.0.bias", "encoder.1.weight", "encoder.1.bias"},
            0.1,
            0.0,
        ),
        "head": ({"head.weight"}, 1.0, 0.5),
        "head without decay": ({"head.bias", "out_bias", "gamma"}, 1.0, 0.0),
    }


def test_rates_by_stage():
    """As in timm: the head has the base rate, each stage away from it a factor more."""
    model = FsaNet("mobilenetv2_100", num_classes=3, head_channels=8, aux_channels=8)
    options = {"lr": 0.1, "encoder_lr_multiplier": 0.5, "layer_decay": 0.3}
    task = SemanticSegmentation(model, classes=("a", "b", "c"), head_lr_multiplier=2.0, **options)
    task.total_steps = 10
    rates = {}
    for group in task.configure_optimizers()["optimizer"].param_groups:
        rates |= dict.fromkeys(group["params"], group["initial_lr"])
    modules = {"conv_stem": 1, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "blocks.3": 4}
    modules |= {"blocks.4": 4, "blocks.5": 5, "blocks.6": 5}
    for name, stage in modules.items():
        for parameter in model.encoder.get_submodule(name).parameters():
            assert rates[parameter] == pytest.approx(0.1 * 0.5 * 0.3 ** (6 - stage)), name
    for parameter in (*model.head.parameters(), *model.auxiliary.parameters()):
        assert rates[parameter] == pytest.approx(0.2)
    assert len(rates) == len(list(model.parameters()))


def test_groups_with_decay_everywhere():
    groups = parameter_groups(Network(), lr=0.1, weight_decay=0.5)
    assert [(group["name"], len(group["params"])) for group in groups] == [
        ("encoder", 4),
        ("head", 4),
    ]
    assert all(group["weight_decay"] == 0.5 and group["lr"] == 0.1 for group in groups)


def test_rate_of_the_coco_recipe_drops_after_60k_and_80k_steps():
    recipe = yaml.safe_load(
        (Path(__file__).parents[2] / "src/fsanet/recipes/coco_mask_rcnn.yaml").read_text()
    )
    options = {"total_steps": recipe["steps"], "milestones": recipe["task"]["milestones"]}
    rates = [milestone_factor(step, **options) for step in (59_999, 60_000, 79_999, 80_000)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])
