"""`fsanet predict` in several processes, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.cli import main as cli
from fsanet.models import FsaNet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small = {"channels": [8, 8, 8, 8], "stem_width": 8}
    torch.manual_seed(0)
    network = FsaNet(
        "resnet10t",
        num_classes=3,
        output_stride=16,
        head_channels=8,
        aux_channels=0,
        zero_init=False,
        encoder_options=small,
    )
    network.save_pretrained(folder)
    return folder


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for number in range(count):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals to a group of processes")
def test_interrupted_in_one_line_and_gone_on_with(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = pictures(tmp_path / "images", 200), tmp_path / "out"
    arguments = ["predict", str(images), "--model", str(model), "--out", str(out)]
    options = ["--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fsanet", *arguments, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # Ignored in what a shell has started in the background, and inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (out / "010.json").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    shown, errors = process.communicate(timeout=60)
    assert (process.returncode, shown) == (130, ""), errors
    assert errors == "fsanet: interrupted; the same command with --resume goes on\n"
    done = len(list(out.glob("[0-9]*.json")))
    assert 0 < done < 200
    assert cli.main([*arguments, "--resume", "--device", "cpu"]) == 0
    assert "200 images in" in (line := capsys.readouterr().out)
    assert f"({done} of them before)" in line
    masks = {file.read_bytes() for file in out.glob("*_mask.png")}
    assert len(list(out.glob("*_mask.png"))) == 200
    assert len(masks) == 1  # all pictures are alike
    assert json.loads((out / "summary.json").read_text())["images"] == 200


def test_options_of_processes_are_checked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pictures(tmp_path / "images", 1)
    common = ["predict", str(images), "--model", str(model), "--out", str(tmp_path / "out")]
    for options, line in [
        (["--devices", "2", "--device", "cpu"], "device cpu: is of a single process"),
        (["--num_nodes", "2", "--device", "cpu"], "device cpu: is of a single process"),
        (["--num-nodes", "2", "--strategy", "deepspeed"], "strategy deepspeed"),
        (["--accelerator", "abacus"], "accelerator abacus"),
    ]:
        assert cli.main([*common, *options]) == 2
        captured = capsys.readouterr()
        assert line in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main([*common, "--accelerator", "cpu", "--resume"]) == 0  # nothing was done yet
    assert cli.main([*common, "--accelerator", "cpu", "--resume", "--no-legend"]) == 2
    assert "with legend true, not false" in capsys.readouterr().err
