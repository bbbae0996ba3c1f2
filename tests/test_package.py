"""Imports stay light, and every public name exists."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import fsanet

# Prints the packages imported once a layer is built, a photo is segmented, and a
# training is set up.
STEPS = """
import json, sys
def imported():
    return sorted(name for name in sys.modules if name.count(".") < 2)
import fsanet
fsanet.FrequencySelfAttention(8)
layer = imported()
network = fsanet.FsaNet("mobilenetv2_035", num_classes=2, head_channels=8, aux_channels=0)
network.save_pretrained("model")
from PIL import Image
Image.new("RGB", (64, 64)).save("photo.png")
from fsanet.cli.main import main
assert main(["predict", "photo.png", "--model", "model", "--out", "out"]) == 0
photo = imported()
import timm.layers, torch
assert timm.data.IMAGENET_DEFAULT_MEAN[0] == 0.485
frozen = timm.layers.freeze_batch_norm_2d(torch.nn.BatchNorm2d(3))
assert type(timm.layers.unfreeze_batch_norm_2d(frozen)) is torch.nn.BatchNorm2d
from fsanet.models import MaskRcnnFsa
detector = imported()
assert main(["train", "--config", "demo", "--print-config"]) == 0
training = imported()
traced = timm.create_model("resnet10t", features_only=True, feature_cls="fx").eval()
assert [x.shape[1] for x in traced(torch.ones(1, 3, 32, 32))] == [64, 64, 128, 256, 512]
import torchvision
assert type(frozen) is torchvision.ops.FrozenBatchNorm2d
assert torch.compiler.disable.__module__ == "torch.compiler"
corners = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), corners, 2).mean() == 1
from lightning.fabric.wrappers import OptimizedModule
assert isinstance(torch.compile(torch.nn.Linear(1, 1)), OptimizedModule)
assert not isinstance(torch.nn.Linear(1, 1), OptimizedModule)
print(json.dumps([layer, photo, detector, training, torch._dynamo.__file__]))
"""


@pytest.mark.slow
def test_what_is_imported(tmp_path):
    command = [sys.executable, "-c", STEPS]
    environment = os.environ | {"PYTHONPATH": str(Path(fsanet.__file__).parents[1])}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    *lists, compiler = json.loads(done.stdout.splitlines()[-1])
    layer, photo, detector, training = map(set, lists)
    for_training = {"lightning", "torchmetrics", "transformers", "matplotlib"}
    for_compiling = {"torch._dynamo", "torch._inductor", "sympy", "triton"}
    assert not photo & (for_training | for_compiling | {"torchvision", "timm.data", "scipy"})
    assert not detector & (for_training | for_compiling)
    assert not training & (for_compiling - {"triton"})  # which Lightning counts FLOPs with
    assert Path(compiler).is_file()  # and not what stood in for it
    assert not layer & {*for_training, "jsonargparse", "torchvision", "timm", "huggingface_hub"}
    assert "PIL" not in layer


@pytest.mark.parametrize("name", fsanet.__all__)
def test_public_names(name):
    assert hasattr(fsanet, name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'FsaNett'"):
        fsanet.FsaNett  # noqa: B018


def test_type_annotations_are_published():
    assert (files("fsanet") / "py.typed").is_file()
