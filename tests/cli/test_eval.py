"""`fsanet eval` tests a run as its recipe says, unless told otherwise."""

import json
import shutil

import pytest
import yaml
from PIL import Image

from fsanet.cli import main as cli
from fsanet.cli.recipe import Test as Testing

DATA = {
    "class_path": "SceneData",
    "init_args": {
        "size": [64, 128],
        "train_length": 4,
        "val_length": 2,
        "test_length": 3,
        "batch_size": 2,
        "steps_per_epoch": 2,
        "workers": 0,
    },
}
OPTIONS = {
    "model": {"encoder": "test_resnet", "head_channels": 8, "aux_channels": 0},
    "data": DATA,
    "task": {"optimizer": "adamw"},
    "steps": 2,
    "accelerator": "cpu",
    "test": {"split": "val", "window": 64, "stride": [32, 48], "scales": [0.5, 1.0], "flip": True},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    (folder / "mine.yaml").write_text(yaml.safe_dump(OPTIONS))
    out = folder / "run"
    assert cli.main(["train", "--config", str(folder / "mine.yaml"), "--out", str(out)]) == 0
    return out


def how_tested(run, tmp_path, *more):
    out = tmp_path / "scores"
    assert cli.main(["eval", str(run), "--accelerator=cpu", "--out", str(out), *more]) == 0
    found = json.loads((out / "scores.json").read_text())
    return {"split": found["split"], **found["testing"]}


def test_as_the_run_says(run, tmp_path):
    expected = OPTIONS["test"] | {"resize": None, "precision": "32-true"}
    assert how_tested(run, tmp_path) == expected
    assert how_tested(run / "model", tmp_path) == expected


def test_command_line_wins(run, tmp_path):
    found = how_tested(run, tmp_path, "--scales", "1.0", "--split", "test", "--flip", "false")
    assert (found["scales"], found["split"], found["flip"]) == ([1.0], "test", False)
    assert found["window"] == 64


def test_a_model_folder_on_a_folder_of_images(run, tmp_path, capsys):
    """A copied model knows no data; they are named as for `fsanet train`, in any order."""
    model = shutil.copytree(run / "model", tmp_path / "copied")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images/a.png")
    Image.new("L", (64, 48)).save(tmp_path / "masks/a.png")
    (tmp_path / "test.txt").write_text("a\n")
    given = ["eval", str(model), f"--data.root={tmp_path}", "--data.num-classes", "7"]
    assert cli.main([*given, "--accelerator=cpu"]) == 0
    assert cli.main([*given, "--accelerator=cpu", "--data", "FolderData"]) == 0
    assert capsys.readouterr().out.count("mIoU") == 2


def test_what_is_wrong_with_the_test_is_told_before_the_training(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(OPTIONS | {"test": {"windw": 3}}))
    assert cli.main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "windw" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_the_data_is_one_line(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    data = DATA | {"init_args": DATA["init_args"] | {"size": [64, 96]}}
    file.write_text(yaml.safe_dump(OPTIONS | {"data": data}))
    assert cli.main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "size=(64, 96) of the built-in data set: needs H >= 48" in lines[0]
    assert "Union" not in lines[0]
    assert "Namespace" not in lines[0]


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_files_that_cannot_be_written_are_found_before_the_evaluation(
    run, tmp_path, capsys, monkeypatch, command
):
    monkeypatch.setattr(Testing, "evaluate", lambda *_: pytest.fail("evaluated"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "scores.json"):
        assert cli.main([command, str(run), "--json", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
