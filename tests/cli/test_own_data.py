"""docs/own_data.md: its commands run as they stand, on small data of the same layout."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

pytest.importorskip("faster_coco_eval")

from fsanet import FsaNet, load_model
from fsanet.cli import main as cli
from fsanet.data import FolderData
from fsanet.data.annotations import read_annotations
from fsanet.data.batches import described_data
from fsanet.data.shapes import decode_masks
from fsanet.train import SemanticSegmentation, train

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
# What makes a training of a documented command short.
SMALL = "--steps 1 --data.workers 0 --data.crop 32 32 --data.batch-size 2 --data.steps-per-epoch 1"
SMALL += " --model.head-channels 8 --model.aux-channels 0 --model.encoder mobilenetv3_small_050"


def commands(word):
    """The commands of the page that begin with words, as arguments."""
    text = PAGE.replace("\\\n", " ")
    found = [shlex.split(line)[1:] for line in re.findall(r"^    (fsanet .*)$", text, re.M)]
    return [arguments for arguments in found if " ".join(arguments).startswith(word)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page writes about: photos/, colours/, shapes.json and a trained network."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    colours = np.array([(0, 0, 0), (128, 64, 128)], np.uint8)
    (root / "photos").mkdir()
    (root / "colours").mkdir()
    (root / "colours/table.txt").write_text("void 0 0 0\nroad 128 64 128\n")
    images = []
    for index in range(6):
        pixels = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        ids = np.full((48, 64), index, np.uint8)
        ids[:, 32:] = 10
        for part, mask, end in (
            ("photos", Image.fromarray(ids), "mask"),
            ("colours", Image.fromarray(colours[(ids == 10).astype(int)]), "L"),
        ):
            pixels.save(root / part / f"p{index}.jpg")
            mask.save(root / part / f"p{index}_{end}.png")
        images.append({"id": index, "file_name": f"p{index}.jpg", "height": 48, "width": 64})
    polygon = [0, 0, 32, 0, 32, 24, 0, 24]
    shapes = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": [polygon]} for i in range(6)
    ]
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": shapes, "categories": categories}
    (root / "shapes.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    network = FsaNet("mobilenetv3_small_050", num_classes=11, head_channels=8, aux_channels=0, k=2)
    network.save_pretrained(root / "runs/mine")
    return root


def run(capsys, arguments):
    capsys.readouterr()
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_checks_and_statistics(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    checks, stats = commands("data check"), commands("data stats")
    assert len(checks) == 2
    assert len(stats) == 3
    shown = "".join(run(capsys, [*arguments, "--workers", "0"])[0] for arguments in checks)
    assert "--data.images '*.jpg' --data.masks '{stem}_mask.png'" in shown
    assert "nothing wrong" in shown
    shown = [run(capsys, arguments)[0] for arguments in stats]
    assert "50.00 % (6)" in shown[0]  # id 10
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 400
    assert "#804080" in shown[1]
    assert "50.00 % of all pixels have no label" in shown[2]


def test_training_on_a_folder(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    (given,), (other,) = commands("train --data.root"), commands("train --init-from")
    out = str(tmp_path / "run")
    run(capsys, [*given, *SMALL.split(), "--out", out])
    config = (tmp_path / "run/config.yaml").read_text()
    assert "class_path: fsanet.data.modules.FolderData" in config
    out_text, _ = run(capsys, ["eval", out])
    assert "mIoU" in out_text
    _, err = run(capsys, [*other, *SMALL.split(), "--out", f"{out}2"])
    assert "weights are those of runs/mine; " in err
    assert "start new" in err
    assert load_model(f"{out}2").classes == ("background", "thing")


@pytest.mark.slow
def test_instances(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    (given,) = commands("train --model MaskRcnnFsa")
    small = "--steps 1 --task.warmup-steps 0 --data.workers 0 --data.size 32 32"
    small += " --data.steps-per-epoch 1"
    small += " --model.backbone mobilenetv3_small_050 --model.min-size 32 --model.max-size 64"
    out = str(tmp_path / "run")
    run(capsys, [*given, *small.split(), "--out", out])
    assert load_model(out).classes == ("thing",)
    assert "mask AP" in run(capsys, ["eval", out])[0]


def test_a_run_from_python_remembers_its_data(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    data = FolderData(
        Path("photos"),
        images="*.jpg",
        masks="{stem}_mask.png",
        num_classes=11,
        val_fraction=0.2,
        crop=(32, 32),
        batch_size=2,
        workers=0,
        steps_per_epoch=1,
    )
    task = SemanticSegmentation(load_model("runs/mine"), classes=data.classes)
    out = tmp_path / "run"
    logger = CSVLogger(tmp_path / "own")
    train(task, data, out=out, steps=1, accelerator="cpu", logger=logger, progress=False)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"]["class_path"] == "fsanet.data.modules.FolderData"
    assert config["data"]["init_args"] == {
        "root": "photos",
        "images": "*.jpg",
        "masks": "{stem}_mask.png",
        "num_classes": 11,
        "val_fraction": 0.2,
        "crop": [32, 32],
        "batch_size": 2,
        "workers": 0,
        "steps_per_epoch": 1,
    }
    assert not (out / "tensorboard").exists()
    assert list((tmp_path / "own").rglob("metrics.csv"))
    assert "mIoU" in run(capsys, ["eval", str(out)])[0]


def test_training_from_python_as_documented(folder, monkeypatch, tmp_path):
    """docs/training.md, with a smaller network, crop and number of steps."""
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "evaluate" in c]
    small = {
        "mobilenetv2_100": "mobilenetv3_small_050",
        "crop=(256, 256)": "crop=(32, 32), workers=0",
        "steps=200": "steps=1, progress=False",
        "runs/python": str(tmp_path / "run"),
    }
    for word, smaller in small.items():
        assert code.count(word) == 1
        code = code.replace(word, smaller)
    found = {}
    exec(compile(code, "training.md", "exec"), found)
    assert found["result"].monitor == "val/miou"
    assert found["scores"].miou >= 0


class OwnData(FolderData):
    """As in a user's own file."""


def test_a_class_of_ones_own_is_remembered_by_its_name(tmp_path):
    made = described_data(OwnData(tmp_path, num_classes=2))
    assert made["data"]["class_path"].endswith("test_own_data.OwnData")
    assert made["plugin"] == [__file__]
    assert described_data(OwnData(tmp_path, num_classes=2, palette=np.zeros((2, 3), int))) == {}


@pytest.mark.parametrize("form", ["coco", "cvat", "labelstudio"])
def test_the_labelling_loop(folder, capsys, monkeypatch, tmp_path, form):
    monkeypatch.chdir(folder)
    (given,) = commands("predict photos/*.jpg --model runs/mine --out predictions --format")
    given = [{"cvat": form}.get(word, word) for word in given]
    small = ["predict", "photos/p0_mask.png", "--model", "runs/mine", "--out", str(tmp_path)]
    run(capsys, [*small, "--entropy"])  # of an earlier run, and no part of this one
    shown, _ = run(capsys, [*given, "--out", str(tmp_path), "--no-overlay"])
    listed = (tmp_path / "uncertain.txt").read_text().splitlines()
    assert len(listed) == 5
    entropies = [float(line.split()[0]) for line in shown.splitlines() if line[:1].isdigit()][:5]
    assert entropies == sorted(entropies, reverse=True)
    name = {"coco": "annotations.json", "cvat": "annotations.xml", "labelstudio": "tasks.json"}
    file = tmp_path / name[form]
    if form == "labelstudio":  # as if all predictions were accepted
        tasks = json.loads(file.read_text())
        for task in tasks:
            task["annotations"] = task.pop("predictions")
        file.write_text(json.dumps(tasks))
    found = read_annotations(file)
    assert len(found.images) == 6
    for image in found.images:
        ids = np.asarray(Image.open(tmp_path / f"{Path(image.file).stem}_mask.png"))
        again = np.full_like(ids, 255)
        for shape in image.annotations:
            number = int(found.categories[shape.category])  # names of this network are its ids
            mask = decode_masks([shape.rle], *ids.shape)[0].bool().numpy()
            again[mask] = number
        assert np.array_equal(again, ids)
    if form == "coco":
        assert min(found.categories) == 1


def test_masks_as_pycocotools_reads_them(folder, capsys, monkeypatch, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    monkeypatch.chdir(folder)
    arguments = ["predict", "photos/p0.jpg", "--model", "runs/mine", "--out", str(tmp_path)]
    run(capsys, [*arguments, "--format", "coco"])
    read = coco.COCO(str(tmp_path / "annotations.json"))
    ids = np.asarray(Image.open(tmp_path / "p0_mask.png"))
    for annotation in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, ids == annotation["category_id"] - 1)
        assert annotation["area"] == mask.sum()


def test_masks_as_fiftyone_reads_them(folder, capsys, monkeypatch, tmp_path):
    """Its reader of COCO files, which needs no database."""
    reader = pytest.importorskip("fiftyone.utils.coco")
    monkeypatch.chdir(folder)
    arguments = ["predict", "photos/p0.jpg", "--model", "runs/mine", "--out", str(tmp_path)]
    run(capsys, [*arguments, "--format", "coco"])
    file = str(tmp_path / "annotations.json")
    _, names, _, images, annotations = reader.load_coco_detection_annotations(file)
    ids = np.asarray(Image.open(tmp_path / "p0_mask.png"))
    found = np.full(ids.shape, 255)
    for annotation in annotations[next(iter(images))]:
        read = annotation.to_detection(ids.shape[::-1], names, load_segmentation=True)
        assert read.label == str(annotation.category_id - 1)
        x, y = (
            round(side * n) for side, n in zip(read.bounding_box, ids.shape[::-1], strict=False)
        )
        height, width = read.mask.shape
        box = found[y : y + height, x : x + width]
        assert (box[read.mask.astype(bool)] == 255).all()
        box[read.mask.astype(bool)] = annotation.category_id - 1
    assert np.array_equal(found, ids)


def test_other_classes_of_a_saved_network(folder, capsys):
    model = load_model(folder / "runs/mine", num_classes=4, classes=["road", "car", "sky", "rest"])
    line = capsys.readouterr().err
    assert "2 start new: head.classify.weight, head.classify.bias" in line
    assert model.classes == ("road", "car", "sky", "rest")
    saved = load_model(folder / "runs/mine")
    assert torch.equal(model.encoder.conv_stem.weight, saved.encoder.conv_stem.weight)
    assert load_model(folder / "runs/mine", classes=["a", "b"], k=1).num_classes == 2
