"""`import fsanet` for the layer alone stays light, and every name of the contract is there."""

import subprocess
import sys

import pytest

import fsanet


def test_import_brings_torch_alone():
    code = (
        "import sys, fsanet; fsanet.FrequencySelfAttention(8); "
        "print([m for m in ('lightning', 'transformers', 'torchvision', 'timm', 'torchmetrics', "
        "'huggingface_hub', 'jsonargparse', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", fsanet.__all__)
def test_names_of_the_contract(name):
    assert getattr(fsanet, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'FsaNett'"):
        fsanet.FsaNett  # noqa: B018
