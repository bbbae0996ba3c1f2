"""The experiments' commands and tables; what they train is tested elsewhere."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.miniature import write_camvid

from fsanet import FsaNet
from fsanet.convert.variants import Variant, make_variant
from fsanet.data import CamVid, CamVidData
from fsanet.train import evaluate

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIG = "camvid_segformer_b0"


def run(monkeypatch, script, *arguments):
    """Run a script as from the command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(EXPERIMENTS)
    try:
        runpy.run_path(str(EXPERIMENTS / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("compare.py", "train,table,cost,sweep"),
        ("mask_rcnn.py", "train,table"),
        ("segformer.py", "train,table,sweep"),
        ("scenes.py", "--heads"),
        ("attention_share.py", "--timed"),
        ("training_cost.py", "--batch"),
        ("convert_camvid.py", "--png"),
        ("real_context.py", "--receptive-fields"),
        ("token_mixers.py", "--networks"),
        ("balloon_folds.py", "--folds"),
        ("uncertain.py", "--doublings"),
    ],
)
def test_help(monkeypatch, capsys, script, words):
    assert run(monkeypatch, script, "--help") == 0
    assert words in capsys.readouterr().out


def test_one_command_runs_every_study_of_real_images():
    command = ["bash", "experiments/real_images.sh", "--table"]
    environment = {**os.environ, "PYTHON": "echo"}
    done = subprocess.run(
        command, cwd=EXPERIMENTS.parent, env=environment, capture_output=True, text=True, check=True
    )
    scripts = [line.split() for line in done.stdout.splitlines() if not line.startswith("==")]
    assert scripts == [
        [f"experiments/{name}.py", "--table"]
        for name in ("real_context", "token_mixers", "balloon_folds")
    ]


def write_run(out, run, **scores):
    folder = out / run
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in scores.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_table_of_miou(monkeypatch, capsys, tmp_path):
    for seed, miou in enumerate([0.5, 0.52, 0.54]):
        removed = {"miou": miou - 0.1}
        test = {"miou": miou, "versions": {"torch": "9.9"}}
        write_run(tmp_path, f"dot-R1-seed{seed}", test=test, removed=removed)
    write_run(tmp_path, "none-seed0", test={"miou": 0.4})
    assert run(monkeypatch, "compare.py", "table", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| none | 1 | 40.0 |  | 40.00 |"
    assert lines[3] == "| dot-R1 | 3 | 52.0 ± 2.0 | 42.0 ± 2.0 | 50.00, 52.00, 54.00 |"
    assert lines[-1] == "torch 9.9"
    assert run(monkeypatch, "compare.py", "table", "--out", str(tmp_path / "no")) == 2
    assert "no finished run" in capsys.readouterr().err


def test_table_of_average_precision(monkeypatch, capsys, tmp_path):
    for seed in range(2):
        ap = {"AP": 0.1 * (seed + 1), "AP50": 0.5, "AP75": 0.25}
        val = {"box": {"AP": 0.3}, "mask": ap, "versions": {"torch": "9.9"}}
        write_run(tmp_path, f"plain-seed{seed}", val=val, train={"mask": {"AP": 0.9}})
    assert run(monkeypatch, "mask_rcnn.py", "table", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = ["30.0 ± 0.0", "15.0 ± 7.1", "50.0 ± 0.0", "25.0 ± 0.0", "90.0 ± 0.0", ""]
    assert lines[2] == f"| plain | 2 | {' | '.join(cells)} | 10.0, 20.0 |"
    assert lines[-1] == "torch 9.9"


def test_runs_are_trained_evaluated_and_resumed_where_needed(monkeypatch, capsys, tmp_path):
    commands = []

    def fake(command, **options):
        commands.append(command[1:] if "removed.py" in command[1] else command[3:])
        if command[3] == "eval":
            write_run(
                Path(command[4]).parent, Path(command[4]).name, test={"miou": 0.5, "versions": {}}
            )
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(subprocess, "run", fake)
    write_run(tmp_path, "plain-seed1", test={"miou": 0.25, "versions": {}})
    interrupted = tmp_path / "plain-seed2"
    (interrupted / "checkpoints").mkdir(parents=True)
    (interrupted / "checkpoints" / "last.ckpt").touch()
    where = ["--out", str(tmp_path), "--config", CONFIG, "--jobs", "1", "--data.root=x"]
    what = ["--variants", "plain", "fsa", "--seeds", "1", "2", "--steps", "7"]
    assert run(monkeypatch, "segformer.py", "train", *where, *what) == 0
    trained = [command for command in commands if command[0] == "train"]
    assert [Path(command[3].removeprefix("--out=")).name for command in trained] == [
        "fsa-seed1",
        "plain-seed2",
        "fsa-seed2",
    ]
    assert commands[0] == [
        *("train", f"--config={CONFIG}", "--seed=1", f"--out={tmp_path / 'fsa-seed1'}"),
        *("--model.init_args.attention=frequency", "--data.root=x", "--steps=7"),
    ]
    assert ["--resume=true" in command for command in trained] == [False, True, False]
    file = tmp_path / "fsa-seed1" / "test.json"
    assert commands[1] == ["eval", str(file.parent), f"--json={file}", "--split=test"]
    script, file = EXPERIMENTS / "removed.py", file.with_name("removed.json")
    assert commands[2] == [str(script), str(file.parent), f"--json={file}", "--split=test"]
    assert [Path(command[1]).name for command in commands if "removed" in command[0]] == [
        "fsa-seed1",
        "fsa-seed2",
    ]
    out = capsys.readouterr().out
    assert "[1/4] plain seed 1: mIoU 25.00" in out
    assert "| plain | 2 | 37.5 ± 17.7 |  | 25.00, 50.00 |" in out


def test_scores_without_attention(monkeypatch, capsys, tmp_path):
    write_camvid(tmp_path / "camvid")
    torch.manual_seed(0)
    network = FsaNet("resnet18", num_classes=11, pretrained=False, head_channels=16).eval()
    torch.nn.init.constant_(network.head.attention.norm.weight, 1e5)  # zero at the start
    network.save_pretrained(tmp_path / "network")
    data = CamVidData(tmp_path / "camvid", workers=0)
    options = [str(tmp_path / "network"), "--split=val", "--data=CamVidData", "--data.workers=0"]
    options += [f"--data.root={tmp_path / 'camvid'}", f"--json={tmp_path / 'removed.json'}"]
    assert run(monkeypatch, "removed.py", *options) == 0
    found = json.loads((tmp_path / "removed.json").read_text())
    without = make_variant(network, Variant("attention removed", "removed"))
    assert found["miou"] == pytest.approx(evaluate(without, data, split="val").miou)
    assert found["miou"] != pytest.approx(evaluate(network, data, split="val").miou)
    assert found["attention"] == "removed"
    assert found["split"] == "val"
    assert run(monkeypatch, "removed.py", *options, "--data.root=no") == 2
    assert "no" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep_of_a_segformer_as_transformers_saves_it(monkeypatch, capsys, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=11)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "b0")
    write_camvid(tmp_path / "camvid")
    options = ["--k", "1", "99", "--stages", "1", "all", "--split", "val", "--data", "CamVidData"]
    options += ["--data.root", str(tmp_path / "camvid"), "--data.workers", "0"]
    assert run(monkeypatch, "segformer.py", "sweep", str(tmp_path / "b0"), *options) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "b0" / "sweep.json").read_text())["miou"]
    assert found["stage all, k 99"] == pytest.approx(found["as trained"])
    cells = [f"{100 * found[f'stage {stage}, removed']:.2f}" for stage in ("1", "all")]
    assert f"| removed | {' | '.join(cells)} |" in out
    assert run(monkeypatch, "segformer.py", "sweep", "owner/name", *options) == 2
    assert "give --json" in capsys.readouterr().err


def test_a_run_that_fails_names_its_log(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    options = ["--config", CONFIG, "--out", str(tmp_path), "--seeds", "4"]
    assert run(monkeypatch, "segformer.py", "train", *options, "--variants", "plain") == 2
    log = tmp_path / "plain-seed4.log"
    assert f"plain seed 4 failed; see {log}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare.py cost --rounds 0", "--rounds: 0: give a whole number of at least 1"),
        ("compare.py cost --size 0 5", "--size: 0: give"),
        ("compare.py train --jobs nan", "--jobs: nan: give"),
        ("compare.py train --out /dev/null/x", "cannot be written"),
        ("scenes.py --steps -1", "--steps: -1: give"),
        ("scenes.py --out /dev/null/x", "cannot be written"),
        ("segformer.py train --config no.yaml", "no.yaml: no such YAML file"),
        ("mask_rcnn.py train --config no.yaml", "no.yaml"),
        (f"mask_rcnn.py train --config {CONFIG}", "not a recipe of COCO files"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, capsys, arguments, message):
    assert run(monkeypatch, *arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_camvid_is_converted_from_its_source(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    source, target = tmp_path / "CamVid", tmp_path / "camvid"
    for split in ("train", "val", "test"):
        for folder, shape, most in ((split, (12, 16, 3), 256), (f"{split}annot", (12, 16), 12)):
            (source / folder).mkdir(parents=True)
            values = rng.integers(0, most, shape).astype(np.uint8)
            Image.fromarray(values).save(source / folder / "a.png")
    arguments = [str(source), str(target)]
    assert run(monkeypatch, "convert_camvid.py", *arguments) == 0
    image, mask = CamVid(target, "val")[0]
    ids = np.array(Image.open(source / "valannot" / "a.png"))
    assert (ids == 11).any()
    np.testing.assert_array_equal(mask.numpy(), np.where(ids == 11, 255, ids))
    assert tuple(image.shape) == (3, 12, 16)
    (source / "testannot" / "a.png").unlink()
    assert run(monkeypatch, "convert_camvid.py", *arguments) == 2
    assert "missing, the labels of a.png" in capsys.readouterr().err


def test_a_measurement_gets_the_sizes_that_it_lacks(monkeypatch, capsys, tmp_path):
    file = tmp_path / "share.json"
    options = ["--encoder", "test_resnet", "--head-channels", "8", "--json", str(file)]
    for sizes in (["96"], ["64", "96"]):
        run(monkeypatch, "attention_share.py", *options, "--timed", "96", "--sizes", *sizes)
        rows = json.loads(file.read_text())["rows"]
        assert [str(row["image"]) for row in rows] == sizes
    assert [line for line in capsys.readouterr().err.splitlines() if "done" in line] == [
        "96: done",
        "64: done",
    ]
    assert "cpu_seconds" in rows[1]
    rows[0]["versions"]["torch"] = "9.9"  # measured elsewhere
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": rows}))
    run(monkeypatch, "attention_share.py", "--table", "--json", str(file))
    out = capsys.readouterr().out
    assert out.count("torch 9.9, ") == 1
    assert out.count(f"torch {torch.__version__}, ") == 1


def test_a_measurement_of_something_else_is_kept(monkeypatch, capsys, tmp_path):
    kept = tmp_path / "share.json"
    kept.write_text("{}")
    assert run(monkeypatch, "attention_share.py", "--json", str(kept)) == 2
    assert "give another file, or --table" in capsys.readouterr().err
    assert kept.read_text() == "{}"
