"""Batch norms folded for prediction: the same logits, and the network as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fsanet import FsaNet, Predictor
from fsanet.attention.dct import Band
from fsanet.models.folding import Folding
from fsanet.models.saving import SegmentationNetwork

X = torch.randn(1, 3, 40, 56, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class BatchNormCalls(TorchFunctionMode):
    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is F.batch_norm
        return func(*args, **(kwargs or {}))


def with_statistics(model):
    """In evaluation mode, with batch norms that have seen something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.double().eval()


def network(encoder):
    options = {"num_classes": 3, "head_channels": 8, "aux_channels": 0, "zero_init": False}
    if encoder.startswith("resnet"):
        options["encoder_options"] = {"channels": [8, 8, 8, 8], "stem_width": 8}
    return with_statistics(FsaNet(encoder, decoder="multiscale", **options))


@torch.inference_mode()
def left(model, folding=None):
    """How many batch norms are still computed; the logits have to be those without folding."""
    want, before = model(X), copy.deepcopy(model.state_dict())
    folded = (folding or Folding(model)).network()
    with BatchNormCalls() as calls:
        got = folded(X)
    assert (got - want).abs().max() < 1e-10 * want.abs().max()
    assert torch.equal(model(X), want)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    return calls.count


# A plain batch norm, and one of timm with an activation behind a convolution that pads by itself.
@pytest.mark.parametrize("encoder", ["resnet10t", "tf_mobilenetv3_small_minimal_100"])
def test_whole_network(encoder):
    model = network(encoder)
    assert left(model) == 1  # that of the attention
    assert list(model.state_dict()) == list(network(encoder).state_dict())


class Branches(SegmentationNetwork):
    """One pair of convolution and batch norm, ``pair``, amid others that only look like one."""

    def __init__(self):
        super().__init__()
        facts = {"classes": None, "palette": None, "mean": (0,) * 3, "std": (1,) * 3}
        self.describe(num_classes=3, in_channels=3, **facts)
        self.pair = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3))
        for name in ("taken_twice", "called_twice", "norm_called_twice", "with_own_norm"):
            setattr(self, name, nn.Conv2d(3, 3, 1))
            setattr(self, f"{name}_norm", nn.BatchNorm2d(3))
        self.statistics_of_batch = nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        )

        class Own(nn.BatchNorm2d):
            def forward(self, x):
                return 2 * super().forward(x)

        self.with_own_norm_norm = Own(3)

    def coarse_logits(self, x):
        x = self.statistics_of_batch(self.pair(x))
        y = self.taken_twice(x)
        x = torch.cat([self.taken_twice_norm(y), y]).sum(0, keepdim=True)
        x = self.called_twice_norm(self.called_twice(self.called_twice(x)))
        x = self.norm_called_twice_norm(self.norm_called_twice_norm(self.norm_called_twice(x)))
        return self.with_own_norm_norm(self.with_own_norm(x))


def test_only_what_is_certain_is_folded():
    assert left(with_statistics(Branches())) == 6


def test_changes_are_seen():
    model = with_statistics(Branches())
    folding = Folding(model)
    assert left(model, folding) == 6
    with torch.no_grad():
        model.pair[0].weight.mul_(2)
    assert left(model, folding) == 6
    model.pair[1].running_var.data = torch.full((3,), 3.0, dtype=torch.float64)
    assert left(model, folding) == 6
    model.pair[1] = nn.Identity()
    assert left(model, folding) == 6


class OneSize(Branches):
    def forward(self, x):
        if x.shape[-2:] != (40, 56):
            raise ValueError(x.shape)
        return super().forward(x)


def test_networks_that_stay_as_they_are():
    assert left(with_statistics(OneSize())) == 7
    compiled = with_statistics(Branches())
    compiled.pair._compiled_call_impl = compiled.pair._call_impl  # as `Module.compile` sets it
    assert left(compiled) == 7


def test_predictor_folds():
    model = with_statistics(Branches()).float()
    photo = (X[0] * 50 + 128).clamp(0, 255).to(torch.uint8)
    predictor = Predictor(model)
    with torch.inference_mode():
        want = model(model.normalise(photo[None]))[0].argmax(0)
    assert torch.equal(predictor(photo).mask, want.to(torch.uint8))
    with predictor.running() as run, BatchNormCalls() as calls:
        run(torch.zeros(1, 3, 8, 8))
    assert calls.count == 6


def test_attention_can_be_changed_between_predictions():
    model = network("resnet10t")
    predictor, x = Predictor(model), X.float()
    model.float()
    for k in (1, 4):
        model.head.attention.band = Band.of(k)
        with predictor.running() as run:
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-4)
