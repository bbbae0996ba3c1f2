"""Regression benchmark: layer, network and prediction before and after a change.

    pytest -c benchmarks/pytest.ini benchmarks --benchmark-autosave    # before
    pytest -c benchmarks/pytest.ini benchmarks --benchmark-compare     # after

It neither passes nor fails. On a busy machine, look at the minimum and the median, and at the
floor, which no change of ours can move. A plain `pytest` does not collect it. `fsanet bench`
compares with other layers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet import FsaNet
from fsanet.bench.cases import find_cases
from fsanet.bench.training import make_training_step
from fsanet.predict.folder import predict_folder
from fsanet.train.losses import SegmentationLoss

NAMES = (
    "floor",
    "dot-R1",
    "dot-R2",
    "dot-R4",
    "dot-R1-inplace",
    "dot-R1-channels-last",
    "linear_softmax-R1",
    "linear_softmax-R2",
    "linear-R1",
    "paper-R1",
)
SIZES = ((97, 97), (128, 256), (256, 512))
CHANNELS = 512
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def x(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(1, CHANNELS, *request.param, device=DEVICE)


@pytest.mark.parametrize("name", NAMES)
def test_forward(benchmark, x: torch.Tensor, name: str) -> None:
    benchmark.group = f"forward {tuple(x.shape)}"
    (case,) = find_cases([name])
    layer = case.build(CHANNELS, DEVICE, x.dtype).eval()
    if case.channels_last:
        x = x.to(memory_format=torch.channels_last)

    def run() -> None:
        layer(x)
        wait()

    with torch.no_grad():
        benchmark.pedantic(run, rounds=20, warmup_rounds=3)


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(benchmark, x: torch.Tensor, name: str) -> None:
    benchmark.group = f"forward + backward {tuple(x.shape)}"
    (case,) = find_cases([name])
    layer = case.build(CHANNELS, DEVICE, x.dtype).train()
    if case.channels_last:
        x = x.to(memory_format=torch.channels_last)
    seed = torch.ones_like(x)
    x.requires_grad_()

    def clear() -> None:
        for tensor in (x, *layer.parameters()):
            tensor.grad = None

    def run() -> None:
        layer(x).backward(seed)
        wait()

    benchmark.pedantic(run, setup=clear, rounds=15, warmup_rounds=2)


def test_folder(benchmark, tmp_path) -> None:
    """Four photos through network, drawing and files, which an earlier round has written."""
    benchmark.group = "fsanet predict, 4 photos of 360x480, resnet18 FsaNet"
    generator = np.random.default_rng(0)
    for number in range(4):
        smooth = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        photo = Image.fromarray(smooth).resize((480, 360), Image.Resampling.BICUBIC)
        photo.save(tmp_path / f"{number}.jpg")
    model = FsaNet("resnet18", num_classes=19).eval()

    def run() -> None:
        predict_folder(model, tmp_path, tmp_path / "out", device=DEVICE.type, progress=False)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("attention", [None, "frequency"], ids=["none", "frequency"])
def test_network(benchmark, attention: str | None) -> None:
    benchmark.group = "resnet18 FsaNet, 257x257"
    model = FsaNet("resnet18", num_classes=19, attention=attention, zero_init=False)
    model = model.to(DEVICE).eval()
    images = torch.randn(1, 3, 257, 257, device=DEVICE)

    def run() -> None:
        model(images)
        wait()

    with torch.no_grad():
        benchmark.pedantic(run, rounds=7, warmup_rounds=1)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_training_step(benchmark, channels_last: bool) -> None:
    benchmark.group = "training step, resnet18 FsaNet, 2 images of 257x257"
    model = FsaNet("resnet18", num_classes=19, zero_init=False).train()
    options = {"device": DEVICE, "channels_last": channels_last}
    step = make_training_step(
        model, (2, 3, 257, 257), num_classes=19, loss=SegmentationLoss().to(DEVICE), **options
    )

    def run() -> None:
        step()
        wait()

    benchmark.pedantic(run, rounds=7, warmup_rounds=1)
