"""Predictions as annotations, of images and classes whose names hold anything."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import thin_fsanet

pytest.importorskip("faster_coco_eval")

from fsanet.cli import main as cli
from fsanet.data.cvat import cvat_as_coco
from fsanet.data.label_studio import label_studio_as_coco

NAMES = ["a\x01\x1b[31m.png", "b c&d#e%41+f.png", os.fsdecode(b"\xff.png")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    thin_fsanet(classes=["x\x00y", "\x1b[31m", "z"]).save_pretrained(folder)
    return folder


def picture(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def predict(model, folder, *arguments):
    options = ["--model", str(model), "--out", str(folder / "out"), "--device", "cpu"]
    return cli.main(["predict", str(folder / "images"), *options, *arguments])


@pytest.mark.parametrize("form", ["cvat", "labelstudio"])
def test_files_that_their_tools_read_whatever_the_names(model, tmp_path, form):
    for name in NAMES:
        picture(tmp_path / "images" / name)
    assert predict(model, tmp_path, "--format", form) == 0
    if form == "cvat":
        found, _ = cvat_as_coco(tmp_path / "out/annotations.xml")
        expected = [r"a\x01\x1b[31m.png", NAMES[1], r"\udcff.png"]
        assert [one["name"] for one in found["categories"]] == [r"x\x00y", r"\x1b[31m", "z"]
    else:
        tasks = json.loads((tmp_path / "out/tasks.json").read_text())
        for task in tasks:
            task["annotations"] = task.pop("predictions")
        found, _ = label_studio_as_coco(tasks, "tasks.json")
        expected = [*NAMES[:2], "�.png"]
    assert [image["file_name"] for image in found["images"]] == expected


def test_the_most_uncertain_whatever_their_names(model, tmp_path, capsys):
    for name in NAMES:
        picture(tmp_path / "images" / name)
    assert predict(model, tmp_path, "--uncertain", "9") == 0
    said = capsys.readouterr().out
    assert r"a\x01\x1b[31m.png" in said
    assert "\x1b" not in said
    listed = (tmp_path / "out/uncertain.txt").read_bytes().split(b"\n")[:-1]
    assert {Path(os.fsdecode(line)).name for line in listed} == {*NAMES}


OTHER = '{"made": 1, "image": [], "files": {}, "width": 1}'


@pytest.mark.parametrize(
    "content", ["{", "[" * 10_000, '{"made": 1}', '{"made": 1, "image": "a"}', OTHER]
)
def test_other_files_in_the_folder_are_left_out(model, tmp_path, content):
    picture(tmp_path / "images/a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.json").write_text(content)
    os.mkfifo(tmp_path / "out/pipe.json")
    assert predict(model, tmp_path, "--format", "coco", "--uncertain", "1") == 0
    found = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.png"]


def test_an_image_whose_result_has_another_name_now_counts_once(model, tmp_path):
    """Beside b.jpg, the result of b.png is called b.png.json; alone, b.json."""
    for name in ("b.png", "b.jpg"):
        picture(tmp_path / "images" / name)
        assert predict(model, tmp_path, "--format", "coco", "--entropy", "--uncertain", "9") == 0
    assert {file.name for file in (tmp_path / "out").glob("b*.json")} == {
        *("b.json", "b.png.json", "b.jpg.json")
    }
    found = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["b.jpg", "b.png"]
    assert len((tmp_path / "out/uncertain.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("more", [["--format", "coco"], ["--uncertain", "1"]])
def test_where_no_image_is_read_its_own_error_is_reported(model, tmp_path, capsys, more):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("no image")
    assert predict(model, tmp_path, *more) == 2
    assert "1 not read, the first: " in capsys.readouterr().err
