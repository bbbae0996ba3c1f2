"""train, eval and predict on data of instances: what they print, what they leave, bad input."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.miniature import write_instance_scenes

pytest.importorskip("faster_coco_eval")

from fsanet import load_model
from fsanet.cli import main as cli
from fsanet.data import InstanceScenes
from fsanet.data.shapes import decode_masks
from fsanet.predict.predictor import Detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, length in (("train", 4), ("val", 2)):
        write_instance_scenes(root / split, InstanceScenes(length, split=split, size=(64, 80)))
    return root


@pytest.fixture(scope="module")
def config(folder):
    paths = {f"{s}_annotations": f"{s}/instances.json" for s in ("train", "val")}
    paths |= {f"{s}_images": f"{s}/images" for s in ("train", "val")}
    options = {
        "model": {
            "backbone": "test_resnet",
            "positions": ["p4"],
            "k": 2,
            "fpn_channels": 16,
            "box_channels": 16,
            "mask_channels": 8,
            "min_size": 64,
            "max_size": 64,
            "anchor_sizes": [8, 16, 32, 48, 64],
            "detector_options": {
                "rpn_post_nms_top_n_train": 20,
                "rpn_post_nms_top_n_test": 10,
                "box_score_thresh": 0.0,
                "box_detections_per_img": 5,
            },
        },
        "data": {
            "class_path": "fsanet.data.CocoData",
            "init_args": {
                "root": str(folder),
                **paths,
                "size": [64, 64],
                "steps_per_epoch": 2,
                "workers": 0,
            },
        },
        "task": {"optimizer": "adamw", "lr": 0.001, "warmup_steps": 1},
        "steps": 2,
        "accelerator": "cpu",
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(options))
    return file


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.main(["train", "--config", str(config), "--out", str(out)]) == 0
    return out


def test_trained_model_knows_its_classes(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["classes"] == ["disc", "box", "triangle"]
    assert config["category_ids"] == [1, 2, 3]
    assert yaml.safe_load((trained / "config.yaml").read_text())["model"]["k"] == 2


def test_eval_prints_the_table_and_writes_the_scores(trained, tmp_path, capsys):
    assert cli.main(["eval", str(trained), "--json", str(tmp_path / "scores.json")]) == 0
    shown = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 2
    assert {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"} <= set(scores["mask"])
    assert f"mask AP {100 * scores['mask']['AP']:.2f} %" in shown
    assert all(word in shown for word in ("AP50", "AP75", "triangle"))


def test_tables_of_classes_are_refused_before_the_evaluation(trained, tmp_path, capsys):
    assert cli.main(["eval", str(trained), "--out", str(tmp_path / "tables")]) == 2
    captured = capsys.readouterr()
    assert "--out: for semantic segmentation" in captured.err
    assert captured.out == ""


def test_predict_writes_what_the_network_finds(trained, folder, tmp_path, capsys):
    images = folder / "val" / "images"
    arguments = ["predict", str(images), "--model", str(trained), "--out", str(tmp_path)]
    assert cli.main([*arguments, "--score", "0.1"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    assert summary["images"] == 2
    assert len(results) == summary["instances"] > 0
    predictor = Detector(load_model(trained), score=0.1)
    for number, name in ((entry["id"], entry["image"]) for entry in summary["files"]):
        found = predictor(name)
        mine = [entry for entry in results if entry["image_id"] == number]
        masks = decode_masks([entry["segmentation"] for entry in mine], 64, 80)
        assert torch.equal(masks.bool(), found.masks)
        stem = re.sub(r".*/|\.png$", "", name)
        ids = np.asarray(Image.open(tmp_path / f"{stem}_instances.png"))
        assert np.array_equal(ids, found.id_map().numpy())
        assert Image.open(tmp_path / f"{stem}_overlay.png").size == (80, 64)
        listed = json.loads((tmp_path / f"{stem}.json").read_text())["instances"]
        assert [entry["name"] for entry in listed] == [found.name(i) for i in range(len(found))]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model.positons=[p4]"], r"MaskRcnnFsa': Option 'positons' is not accepted"),
        (["--data.init_args.bath_size=2"], r"Option 'bath_size' is not accepted"),
        (["--model.positions=[p9]"], r"positions"),
        (["--data.init_args.root=/nowhere"], r"/nowhere/train/instances.json: no such annotation"),
        (["--steps=0"], r"steps=0"),
    ],
)
def test_train_says_what_is_wrong(config, tmp_path, capsys, arguments, line):
    out = tmp_path / "run"
    assert cli.main(["train", "--config", str(config), "--out", str(out), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(line, lines[0])
    assert not out.exists()


def test_predict_says_what_is_wrong(trained, folder, tmp_path, capsys):
    image = str(folder / "val" / "images")
    arguments = ["predict", image, "--model", str(trained), "--out", str(tmp_path / "out")]
    for extra, line in (
        (["--score", "2"], "score is 2.0"),
        (["--window", "32"], "window: for semantic segmentation"),
        (["--alpha", "3"], "alpha is 3.0"),
    ):
        assert cli.main([*arguments, *extra]) == 2
        assert line in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"no image")
    arguments[1] = str(tmp_path / "bad.png")
    assert cli.main(arguments) == 2
    assert "bad.png" in capsys.readouterr().err
