"""Measurements of pipelines whose times are known, because they sleep by a clock of their own."""

import time

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from fsanet.data import FolderData, SceneData
from fsanet.data.batches import OrderedData
from fsanet.data.module import collate
from fsanet.data.speed import measure_rate, measure_stages
from fsanet.errors import InputError


class Sleeps:
    """Items that take ``seconds`` to read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int):
        time.sleep(self.seconds)
        mask = tv_tensors.Mask(torch.zeros(2, 2, dtype=torch.uint8))
        return tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)), mask


class Nap(v2.Transform):
    def forward(self, *inputs):
        time.sleep(0.02)
        return inputs


class SlowData(OrderedData):
    def __init__(self, seconds: float) -> None:
        super().__init__(
            batch_size=2, steps_per_epoch=3, accumulate=4, eval_batch_size=1, workers=5, seed=0
        )
        self.seconds = seconds
        self.train_transform = v2.Compose([Nap(), v2.Identity()])
        self.eval_transform = v2.Identity()

    def make_dataset(self, stage: str) -> Sleeps:
        return Sleeps(self.seconds)

    @staticmethod
    def collate(items):
        time.sleep(0.04)
        return collate(items)


@pytest.mark.usefixtures("clock")
def test_stages_take_what_they_take():
    data = SlowData(0.03)
    calls = []
    stages = {
        stage.name: stage
        for stage in measure_stages(data, images=5, progress=lambda *call: calls.append(call))
    }
    assert list(stages) == ["read", "Nap", "Identity", "make a batch", "all"]
    # 0.04 s for two images is 20 ms for one
    for name, expected in (("read", 30), ("Nap", 20), ("make a batch", 20), ("all", 70)):
        stage = stages[name]
        assert (stage.lower, stage.median, stage.upper) == pytest.approx((expected,) * 3)
    assert stages["Identity"].median == 0
    assert calls == [(n, 6) for n in range(1, 7)]  # whole batches
    # what was set for the measurement is put back
    assert (data.workers, data.steps_per_epoch, data.accumulate) == (5, 3, 4)


@pytest.mark.usefixtures("clock")
def test_rate_without_workers():
    data = SlowData(0.06)
    data.train_transform = v2.Identity()
    found = measure_rate(data, 0, batches=5)
    # 2 images take 0.06 s each, and 0.04 s to put together
    assert (found.lowest, found.images_per_second, found.highest) == pytest.approx((12.5,) * 3)
    assert (found.workers, found.batches) == (0, 5)
    assert (data.workers, data.steps_per_epoch, data.accumulate) == (5, 3, 4)


def test_rate_with_two_workers():
    data = SlowData(0.001)
    threads = torch.get_num_threads()
    found = measure_rate(data, 2, batches=20)
    assert 0 < found.lowest <= found.images_per_second <= found.highest
    assert (found.workers, found.batches) == (2, 20)
    assert (data.workers, data.steps_per_epoch, data.accumulate) == (5, 3, 4)
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("clock")
def test_reading_is_told_apart_where_there_are_files(write, monkeypatch):
    write.pairs("train", ["a", "b", "c"])
    data = FolderData(write.root, num_classes=3, crop=(8, 8), batch_size=2, workers=0)

    def slow(*args):
        time.sleep(0.03)

    monkeypatch.setattr("fsanet.data.datasets.folder.check_ids", slow)
    stages = {stage.name: stage.median for stage in measure_stages(data, images=6)}
    names = ["decode image", "decode labels", "resize and crop", "flip", "colour", "pad"]
    assert list(stages) == [*names, "make a batch", "all"]
    assert stages["decode image"] == 0
    assert stages["decode labels"] == pytest.approx(30)


def test_what_is_measured_is_what_is_trained_on(monkeypatch):
    data = SceneData(
        size=(48, 130), train_length=6, batch_size=3, workers=0, crop=(40, 64), scale=(0.5, 2)
    )
    data.steps_per_epoch = 2
    expected = list(data.train_dataloader())
    batches = []
    monkeypatch.setattr(data, "collate", lambda items: batches.append(collate(items)))
    state = torch.get_rng_state()
    measure_stages(data, images=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(batches) == 2
    for found, wanted in zip(batches, expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize(
    "measure",
    [
        lambda data: measure_rate(data, -1),
        lambda data: measure_rate(data, 0, batches=4),
        lambda data: measure_stages(data, images=1),
    ],
)
def test_numbers_that_make_no_sense(measure):
    with pytest.raises(InputError, match="give at least"):
        measure(SlowData(0.0))
