"""`fsanet data speed`: tables, JSON, data of both kinds, and mistakes in one line."""

import json

import pytest
import yaml
from support.miniature import write_ade20k, write_coco

from fsanet.cli import main as cli


def run(capsys, *arguments):
    code = cli.main(["data", "speed", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_recipe_from_a_file(tmp_path, capsys):
    root = write_ade20k(tmp_path / "data")
    config = tmp_path / "recipe.yaml"
    options = {"root": str(root), "crop": [16, 20], "batch_size": 2, "workers": 0}
    config.write_text(
        yaml.safe_dump(
            {
                "model": {"encoder": "resnet18", "k": 4},
                "data": {"class_path": "fsanet.data.Ade20kData", "init_args": options},
                "task": {"lr": 0.1},
                "steps": 10,
            }
        )
    )
    before = sorted(tmp_path.rglob("*"))
    small = ["--workers", 0, 1, "--batches", 5, "--images", 3]
    code, out, err = run(capsys, "--config", config, *small, "--json", tmp_path / "speed.json")
    assert (code, err) == (0, "")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "speed.json"])
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["data"] == "Ade20kData"
    assert (content["images"], content["batch_size"], content["cache"]) == (3, 2, False)
    assert [rate["workers"] for rate in content["rates"]] == [0, 1]
    for rate in content["rates"]:
        assert 0 < rate["lowest"] <= rate["images_per_second"] <= rate["highest"]
        assert f"│ {rate['images_per_second']:8.1f} │" in out
    names = [stage["name"] for stage in content["stages_ms"]]
    assert names[:3] == ["decode image", "decode labels", "resize and crop"]
    assert all(name in out for name in names)
    assert content["versions"]["torch"] in out


def test_instances_from_options(tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path)
    given = ["--data", "fsanet.data.instances.CocoData", f"--data.init_args.root={root}"]
    given += ["--data.init_args.size=[48,64]", "--workers", 0, "--batches", 5, "--images", 2]
    code, out, err = run(capsys, *given)
    assert (code, err) == (0, "")
    for name in ("CocoData", "decode image", "decode labels", "colour", "instances"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--data", "CamVidData", "--data.init_args.root=/nowhere"], "/nowhere: no such folder"),
        (["--data", "CamVid"], "no class CamVid"),
        (["--workers", "two"], "invalid int value: 'two'"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
        (["--data", "SceneData", "--workers", "-2"], "workers=-2"),
        (["--data", "SceneData", "--batches", "2"], "batches=2"),
        (["--data", "SceneData", "--btches", "2"], "unknown option 'btches'"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, line):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert line in err
    assert err.count("\n") == 1
