"""benchmarks/data_loading.py on pipelines of known speed: they sleep by a clock of their own."""

import json
import time

import pytest
import torch
import yaml
from support.miniature import write_ade20k, write_coco
from support.scripts import load_benchmark
from torchvision import tv_tensors
from torchvision.transforms import v2

from fsanet.data import SceneData, SegmentationData
from fsanet.data.batches import SeededData
from fsanet.errors import InputError


@pytest.fixture(scope="module")
def script():
    return load_benchmark("data_loading")


class Sleeps:
    """Items that take 30 ms to read."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int):
        time.sleep(0.03)
        mask = tv_tensors.Mask(torch.zeros(2, 2, dtype=torch.uint8))
        return tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)), mask


class Nap(v2.Transform):
    def forward(self, *inputs):
        time.sleep(0.02)
        return inputs


class SlowData(SeededData):
    classes = ("a",)

    def __init__(self) -> None:
        super().__init__(batch_size=2, steps_per_epoch=3, accumulate=4, workers=5)
        self.train_transform = v2.Compose([Nap(), v2.Identity()])

    def make_dataset(self, stage: str) -> Sleeps:
        return Sleeps()

    @staticmethod
    def collate(items):
        time.sleep(0.04)
        return SegmentationData.collate(items)


@pytest.mark.usefixtures("clock")
def test_stages_take_the_time_they_take(script):
    data = SlowData()
    stages = {stage.name: stage for stage in script.measure_stages(data, images=5)}
    assert list(stages) == ["read", "Nap", "Identity", "make a batch", "all"]
    # 0.04 s for two images is 20 ms for one
    for name, expected in (("read", 30), ("Nap", 20), ("make a batch", 20), ("all", 70)):
        stage = stages[name]
        assert (stage.lower, stage.median, stage.upper) == pytest.approx((expected,) * 3)
    assert stages["Identity"].median == 0
    # what was changed for the measurement is restored
    assert (data.workers, data.steps_per_epoch, data.accumulate) == (5, 3, 4)


@pytest.mark.usefixtures("clock")
def test_rate_without_workers(script):
    data = SlowData()
    found = script.measure_rate(data, 0, batches=5)
    # 2 images take 0.05 s each, and 0.04 s to put together
    assert (found.lowest, found.images_per_second, found.highest) == pytest.approx((2 / 0.14,) * 3)
    assert (found.workers, found.batches) == (0, 5)
    assert (data.workers, data.steps_per_epoch, data.accumulate) == (5, 3, 4)


def test_measured_items_are_those_of_training(script, monkeypatch):
    data = SceneData(
        size=(48, 130), train_length=6, batch_size=3, workers=0, crop=(40, 64), scale=(0.5, 2)
    )
    data.steps_per_epoch = 2
    expected = list(data.train_dataloader())
    batches = []
    collate = SegmentationData.collate
    monkeypatch.setattr(data, "collate", lambda items: batches.append(collate(items)))
    script.measure_stages(data, images=6)
    assert len(batches) == 2
    for found, wanted in zip(batches, expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


def test_recipe_from_a_file(script, tmp_path, capsys):
    root = write_ade20k(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    options = {"root": str(root), "crop": [16, 20], "batch_size": 2, "workers": 0}
    data = {"class_path": "Ade20kData", "init_args": options}
    recipe.write_text(yaml.safe_dump({"model": {"k": 4}, "data": data, "steps": 10}))
    small = ["--workers", "0", "1", "--batches", "5", "--images", "3"]
    assert (
        script.main(["--config", str(recipe), *small, "--json", str(tmp_path / "speed.json")]) == 0
    )
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["data"] == "Ade20kData"
    assert (content["images"], content["batch_size"], content["cache"]) == (3, 2, False)
    assert [rate["workers"] for rate in content["rates"]] == [0, 1]
    for rate in content["rates"]:
        assert f"│ {rate['images_per_second']:8.1f} │" in out
    names = [stage["name"] for stage in content["stages_ms"]]
    assert names[:3] == ["decode image", "decode labels", "resize and crop"]
    assert all(name in out for name in names)


def test_instances_from_options(script, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path)
    given = ["--data", "CocoData", f"--data.root={root}", "--data.size=[48,64]"]
    assert script.main([*given, "--workers", "0", "--batches", "5", "--images", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("CocoData", "decode image", "decode labels", "colour", "instances"):
        assert name in out


def test_invalid_numbers(script, capsys):
    for measure in (
        lambda data: script.measure_rate(data, -1),
        lambda data: script.measure_rate(data, 0, batches=4),
        lambda data: script.measure_stages(data, images=1),
    ):
        with pytest.raises(InputError, match="give at least"):
            measure(SlowData())
    assert script.main(["--data", "CamVidData", "--data.root", "/nowhere"]) == 2
    assert "download" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such YAML file"),
        ("data: [", "YAML"),
        ("- 1", "option: value"),
        ("steps: 3", "no data section"),
        ("data: {class_path: NoData}", "no class 'NoData'"),
        ("data: {class_path: SceneData, init_args: {crop: x}}", "crop"),
        ("data: {class_path: SceneData, init_args: {batch_size: 0}}", "batch_size=0"),
    ],
)
def test_bad_config_is_one_line(script, tmp_path, capsys, content, message):
    recipe = tmp_path / "recipe.yaml"
    if content is not None:
        recipe.write_text(content)
    assert script.main(["--config", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data_loading: error: ")
    assert message in line
