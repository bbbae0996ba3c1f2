"""Imports stay light, and every public name exists."""

import json
import subprocess
import sys
from importlib.resources import files

import pytest

import fsanet

# Prints the packages imported once a layer is built, and once an image is segmented.
STEPS = """
import json, sys
def imported():
    return sorted({name.split(".")[0] for name in sys.modules})
import fsanet
fsanet.FrequencySelfAttention(8)
layer = imported()
import torch
model = fsanet.FsaNet("resnet10t", num_classes=2, head_channels=8, aux_channels=0)
fsanet.Predictor(model)(torch.zeros(3, 64, 64, dtype=torch.uint8))
print(json.dumps([layer, imported()]))
"""


def test_what_is_imported():
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    layer, photo = (set(names) for names in json.loads(done.stdout))
    for_training = {"lightning", "torchmetrics", "transformers", "jsonargparse", "matplotlib"}
    assert not photo & for_training
    assert not layer & {*for_training, "torchvision", "timm", "huggingface_hub", "PIL"}


@pytest.mark.parametrize("name", fsanet.__all__)
def test_public_names(name):
    assert hasattr(fsanet, name)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'FsaNett'"):
        fsanet.FsaNett  # noqa: B018


def test_type_annotations_are_published():
    assert (files("fsanet") / "py.typed").is_file()
