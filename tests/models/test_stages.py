"""Stages of encoders, compared with the modules that timm and torchvision name."""

import pytest
import torch
from torch import nn

from fsanet.errors import InputError
from fsanet.models import FsaNet, MaskRcnnFsa
from fsanet.models.stages import encoder_stages, freeze_stages


def names_by_stage(model, prefix):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{names[p].removeprefix(prefix) for p in stage} for stage in encoder_stages(model)]


def test_stages_of_a_timm_network():
    model = FsaNet("test_resnet", num_classes=2, head_channels=8, aux_channels=0)
    stages = names_by_stage(model, "encoder.")
    assert [{name.split(".")[0] for name in stage} for stage in stages] == [
        {"conv1", "bn1"},
        {"layer1"},
        {"layer2"},
        {"layer3"},
        {"layer4"},
    ]
    assert sum(map(len, stages)) == len(list(model.encoder.parameters()))


def test_stages_are_found_with_parameters_frozen_before():
    model = MaskRcnnFsa(num_classes=2, trainable_stages=2, fpn_channels=8, box_channels=8)
    stages = names_by_stage(model, "backbone.body.")
    starts = [{name.split(".")[0] for name in stage} for stage in stages]
    assert starts == [{"conv1", "layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert not model.backbone.body.conv1.weight.requires_grad  # as it was
    freeze_stages(model, "encoder")
    left = {name for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert left
    assert all(".attention." in name for name in left)


def test_frozen_stages_have_no_gradient():
    model = FsaNet("test_resnet", num_classes=2, head_channels=8, aux_channels=8)
    modes = [module.training for module in model.modules()]
    frozen = freeze_stages(model, 3)
    assert [module.training for module in model.modules()] == modes
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    for name, parameter in model.encoder.named_parameters():
        first = name.startswith(("conv1", "bn1", "layer1", "layer2"))
        assert (parameter.grad is None) == first, name
    norms = {name for name, m in model.named_modules() if m in frozen and "bn" in name}
    assert "encoder.layer2.0.bn1" in norms
    assert not any(name.startswith("encoder.layer3") for name in norms)


def test_a_network_without_stages_is_refused():
    with pytest.raises(InputError, match="Conv2d has no method encoder_features"):
        freeze_stages(nn.Conv2d(1, 1, 1), 1)
