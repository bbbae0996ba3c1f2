"""`fsanet sweep` from the command line, on a network of four steps; and `fsanet eval --out`."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from support.blocks import write_blocks

from fsanet import FsaNet
from fsanet.cli import main as cli
from fsanet.train import evaluate


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Blocks of three colours, 64 x 64, and the file of a training on them."""
    root = tmp_path_factory.mktemp("data")
    write_blocks(root)
    model = {"encoder": "test_resnet", "head_channels": 16, "aux_channels": 0, "output_stride": 16}
    options = {
        "model": model | {"attention": "spatial", "similarity": "softmax", "zero_init": False},
        "data": {
            "class_path": "FolderData",
            "init_args": {
                "root": str(root),
                "classes": ["red", "green", "blue"],
                "batch_size": 2,
                "steps_per_epoch": 2,
                "crop": [64, 64],
                "workers": 0,
            },
        },
        "task": {"optimizer": "adamw", "lr": 0.002},
        "steps": 4,
        "accelerator": "cpu",
    }
    file = root / "mini.yaml"
    file.write_text(yaml.safe_dump(options))
    return file


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mini"
    assert cli.main(["train", "--config", str(config), "--out", str(out)]) == 0
    model = FsaNet.from_pretrained(out / "model")
    with torch.no_grad():  # four steps leave it next to no weight
        model.head.attention.norm.weight *= 1e5
    model.save_pretrained(out / "model")
    return out


def call(*arguments):
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    capsys.readouterr()
    assert call(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fsanet: error: ")
    return line


def data_of(config):
    from fsanet.data import FolderData

    return FolderData(**yaml.safe_load(config.read_text())["data"]["init_args"])


@pytest.mark.slow
def test_sweep_measures_what_the_overrides_of_from_pretrained_give(
    trained, config, tmp_path, capsys
):
    out = tmp_path / "sweep"
    options = ["--k", 1, "full", "--bands", "low", "high", "0:1,2:", "--cuts", 1, 2]
    assert call("sweep", trained, *options, "--out", out, "--accelerator", "cpu") == 0
    shown = capsys.readouterr().out
    content = json.loads((out / "sweep.json").read_text())
    found = {row["name"]: row["no_retraining"] for row in content["points"]}
    how = {"accelerator": "cpu", "progress": False}
    bands = {
        "k=1": 1,
        "k=full": None,
        "low 0:1": 1,
        "high 2:": ((2, None), (2, None)),
        "0:1,2:": ((0, 1), (2, None)),
    }
    for name, k in bands.items():
        model = FsaNet.from_pretrained(trained / "model", attention="frequency", k=k)
        expected = evaluate(model, data_of(config), **how)
        assert found[name] == json.loads(json.dumps(expected.as_dict())), name
    regular = evaluate(trained, data_of(config), **how)
    assert found["as trained"]["miou"] == regular.miou
    assert found["k=full"]["miou"] == pytest.approx(regular.miou, abs=1e-3)
    assert len({scores["miou"] for scores in found.values()}) > 2  # attention does something
    table = (out / "sweep.md").read_text()
    for name in found:
        assert f"| {name} |" in table
        assert name in shown
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "torch" in content["versions"]


@pytest.mark.slow
def test_retraining_each_point_and_going_on(trained, config, tmp_path, capsys):
    out = tmp_path / "sweep"
    how = ["--k", 2, "--out", out, "--accelerator", "cpu"]
    again = ["--retrain", config, "--steps", 2, "--seeds", 0, 1]
    assert call("sweep", trained, *how, *again) == 0
    runs = sorted(path.name for path in (out / "trained").iterdir())
    points = ("as-trained", "attention-removed", "k=2")
    assert runs == sorted(f"{name}-seed{seed}" for name in points for seed in (0, 1))
    networks = {
        name: yaml.safe_load((out / "trained" / f"{name}-seed1" / "config.yaml").read_text())
        for name in points
    }
    assert [networks[name]["model"]["attention"] for name in points] == [
        "spatial",
        None,
        "frequency",
    ]
    assert networks["k=2"]["model"]["k"] == 2
    assert {(one["steps"], one["seed"]) for one in networks.values()} == {(2, 1)}
    content = json.loads((out / "sweep.json").read_text())
    rows = {row["name"]: row["retrained"] for row in content["points"]}
    model = FsaNet.from_pretrained(out / "trained" / "k=2-seed1" / "model")
    scores = evaluate(model, data_of(config), accelerator="cpu", progress=False)
    assert rows["k=2"]["1"]["miou"] == scores.miou

    # One run lost: it alone is made again, and to the same weights.
    lost = out / "trained" / "k=2-seed1"
    weights = (lost / "model" / "model.safetensors").read_bytes()
    other = out / "trained" / "k=2-seed0" / "model" / "model.safetensors"
    assert other.read_bytes() != weights
    kept = other.stat().st_mtime_ns
    shutil.rmtree(lost)
    assert call("sweep", trained, *how, *again) == 0
    assert (lost / "model" / "model.safetensors").read_bytes() == weights
    assert other.stat().st_mtime_ns == kept
    assert json.loads((out / "sweep.json").read_text())["points"] == content["points"]
    line = fails(capsys, "sweep", trained, *how, "--split", "val")
    assert "holds a sweep with" in line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--k", "0"], "--k 0: give numbers from 1 up, or full"),
        (["--bands", "lower"], "--bands lower: give low, middle, high, full"),
        (["--cuts", "3", "2"], "--cuts 3 2"),
        (["--k", "9" * 5000], "--k 9"),
        (["--bands", f"0:{'9' * 5000}"], "--bands 0:9"),
        (["--retrain", "demo", "--steps", "0"], "steps=0: must be at least 1"),
        (["--retrain", "demo", "--steps", "1", "--seeds", "-1"], "seeds=-1: must be at least 0"),
        (["--retrain", "none", "--steps", "1"], "none: no such file"),
        (["--steps", "3"], "give both, or neither"),
        (["--seeds", "1", "1"], "give each once"),
        (
            ["--bands", "9:12"],
            r"9:12: band [9:12) x [9:12) lies outside the frequencies of the 4x4",
        ),
        (["--k", "2", "--match", "encoder.*"], "match: 'encoder.*' matches no attention"),
        (["--splt", "val"], "unrecognized arguments: --splt=val; did you mean --split?"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, capsys, options, line):
    out = tmp_path / "sweep"
    assert line in fails(capsys, "sweep", trained, "--accelerator", "cpu", "--out", out, *options)


def test_a_retrained_run_whose_recipe_is_not_text(trained, config, tmp_path, capsys):
    run = tmp_path / "sweep" / "trained" / "as-trained-seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_bytes(b"steps: \xff")
    how = ["--k", 2, "--out", tmp_path / "sweep", "--retrain", config, "--steps", 2]
    line = fails(capsys, "sweep", trained, *how, "--accelerator", "cpu")
    assert "as-trained-seed0/config.yaml: recipe file is not UTF-8 text" in line


def test_output_that_cannot_be_written_is_told_before_the_work(trained, config, capsys):
    assert "cannot be written" in fails(capsys, "sweep", trained, "--out", config / "sweep")
    assert "cannot be written" in fails(capsys, "eval", trained, "--out", config / "scores")
    for command in ("sweep", "eval"):
        assert "cannot be written" in fails(capsys, command, trained, "--json", config / "x.json")


def test_eval_writes_tables_confusion_and_edges(trained, tmp_path, capsys):
    out = tmp_path / "scores"
    options = ["--boundary", "--trimap", 1, 4, "--scales", 0.5, 1, 1.5, "--flip"]
    assert call("eval", trained, *options, "--out", out, "--accelerator", "cpu") == 0
    shown = capsys.readouterr().out
    content = json.loads((out / "scores.json").read_text())
    assert content["testing"]["scales"] == [0.5, 1.0, 1.5]
    assert content["testing"]["flip"] is True
    assert [row["width"] for row in content["boundary"]["trimap"]] == [1, 4]
    assert f"boundary IoU {100 * content['boundary']['boundary_iou']:.2f} %" in shown
    matrix = np.array(content["confusion"])
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert content["miou"] == pytest.approx(iou.mean())
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [float(row["IoU %"]) for row in rows[:3]] == pytest.approx(100 * iou, abs=0.005)
    assert matrix.sum() == sum(row["pixels"] for row in content["classes"].values()) == 3 * 60 * 64


def test_predict_exports_for_cityscapes_or_says_why_not(trained, config, tmp_path, capsys):
    images = config.parent / "test" / "images"
    zipped = tmp_path / "all.zip"
    common = ["predict", images, "--model", trained, "--cityscapes-export", zipped]
    assert "has 3 classes; the Cityscapes server takes the 19" in fails(capsys, *common)
    assert not zipped.exists()
