"""benchmarks/start_up.py: sums of importtime's lines, and one round of it all."""

import sys

import pytest
import torch
from PIL import Image
from support.scripts import load_benchmark

from fsanet import FsaNet


@pytest.fixture(scope="module")
def script():
    return load_benchmark("start_up")


def test_imports_are_summed_by_package(script):
    log = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:   1000000 |    1000000 |   torch._C\n"
        "import time:    500000 |    1500000 | torch\n"
        "import time:      2000 |       2000 | json\n"
    )
    assert script.import_seconds(log) == pytest.approx({"torch": 1.5, "json": 0.002})


@pytest.mark.slow
def test_one_round(script, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    FsaNet("test_resnet", num_classes=2, head_channels=8).save_pretrained(tmp_path / "model")
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--model", str(tmp_path / "model"), "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["start_up.py", *arguments])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        "command",
        "---",
        "import torch",
        "predict",
        *(f"{name} --help" for name in script.COMMANDS),
    ]
    assert "torch " in lines[-1]
