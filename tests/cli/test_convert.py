"""`fsanet convert`: what it prints, what it leaves, and its one line for bad input."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import regular_fsanet

from fsanet import FrequencySelfAttention, FsaNet
from fsanet.cli import main as cli
from fsanet.convert import load_model

CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Blocks of three colours, 64 x 96."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for index in range(2):
            mask = rng.integers(0, 3, (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            image = (np.stack([mask == c for c in range(3)], -1) * 200).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    network = regular_fsanet(classes=CLASSES, decoder="multiscale", decoder_channels=16)
    folder = tmp_path_factory.mktemp("runs") / "spatial"
    network.save_pretrained(folder)
    return folder


def of_data(root):
    names = ",".join(CLASSES)
    return (
        "--data",
        "FolderData",
        "--data.root",
        str(root),
        "--data.classes",
        f"[{names}]",
        "--data.workers",
        "0",
        "--accelerator",
        "cpu",
        "--progress",
        "false",
    )


def test_converts_and_evaluates(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(model), "--k", "2,3", "--out", str(out), "--size", "64", "96"]
    assert cli.main(["convert", *arguments, "--eval", "--split", "val", *of_data(data)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"head\.attention +SpatialSelfAttention +\[0:2\) x \[0:3\) +softmax", text)
    assert "network at 64x96: " in text
    assert "val split; time and memory of one 96 x 64 image on cpu" in text
    again = FsaNet.from_pretrained(out)
    assert type(again.head.attention) is FrequencySelfAttention
    assert again.head.attention.band == (0, 2, 0, 3)
    report = json.loads((out / "report.json").read_text())
    assert report["flops"]["after"] < report["flops"]["before"]
    # The scores are those that `fsanet eval` gives for both folders.
    for name, folder in (("before", model), ("after", out)):
        file = tmp_path / f"{name}.json"
        given = [str(folder), "--split", "val", "--json", str(file), *of_data(data)]
        assert cli.main(["eval", *given]) == 0
        found = report["evaluation"][name]
        assert found["miou"] == pytest.approx(json.loads(file.read_text())["miou"])
        assert found["seconds"] > 0
        assert found["peak_bytes"] > 3 * 16 * 24 * 4


def test_calibrates_on_files_and_takes_the_grid(model, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(model), "--out", str(out), "--size", "64", "--calibrate", "0.7"]
    arguments += ["--images", str(data / "val" / "images")]
    assert cli.main(["convert", *arguments, "--route", "grid", "--grid", "7", "--route-error"]) == 0
    text = capsys.readouterr().out
    assert "route grid compared with route tokens" in text
    found = json.loads((out / "calibration.json").read_text())
    assert (out / "calibration.png").stat().st_size > 10_000
    k = found["k"]["head.attention"]
    errors = {int(side): error for side, error in found["errors"]["head.attention"].items()}
    assert errors[k] <= 0.7
    assert all(error > 0.7 for side, error in errors.items() if side < k)
    layer = load_model(out).head.attention
    assert (layer.grid, layer.band[1]) == (7, k)


@pytest.mark.slow
def test_segformer_of_transformers(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    source, out = tmp_path / "b0", tmp_path / "out"
    torch.manual_seed(0)
    plain = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(num_labels=3)
    ).eval()
    plain.save_pretrained(source)
    arguments = ["--k", "*stages.2*=4", "*stages.3*=2", "--out", str(out), "--size", "64"]
    assert cli.main(["convert", str(source), *arguments]) == 0
    assert "stages.2.blocks.1.attention" in capsys.readouterr().out
    kept = transformers.SegformerForSemanticSegmentation.from_pretrained(out).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(kept(images).logits, plain(images).logits)
    bands = {
        name: module.band.h1
        for name, module in load_model(out).named_modules()
        if hasattr(module, "band")
    }
    assert bands == {
        f"segformer.stages.{stage}.blocks.{block}.attention": k
        for stage, k in ((2, 4), (3, 2))
        for block in range(2)
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--k", "x"],
            "k=x: give a number (8), two (8,6), a range (4:8), two ranges",
        ),
        (["--k", "4", "5"], "--k 4: with several, each has to be PATTERN=K"),
        (["--match", "tail*"], "'tail*' matches no attention to convert; there are head."),
        (["--calibrate", "0.1", "--k", "4"], "--calibrate chooses k itself"),
        (["--calibrate", "0.1"], "not a run folder, so its data are not known; give --data"),
        (["--by", "miou"], "--by miou requires --calibrate"),
        (["--sise", "4"], "unrecognized arguments: --sise=4; did you mean --size?"),
        (["--size", "1", "2", "3"], "[1, 2, 3]"),
        (["--size", "9" * 20], "--size 999"),
        (["--calibrate", "1e400", "--images", "x"], "calibrate=inf"),
        (["--calibrate", "0.1", "--images", "x", "--calibrate-images", "0"], "calibrate_images=0"),
        (["--k", "9" * 20], "k is 99999999999999999999; at most 65536"),
        (["--route", "grid", "--grid", "1000000"], "grid is 1000000; at most 65536"),
        (["--similarity", "cosine"], "cosine"),
    ],
)
def test_one_line_for_bad_input(arguments, message, model, tmp_path, capsys):
    assert cli.main(["convert", str(model), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_places_that_would_be_overwritten(model, tmp_path, capsys):
    assert cli.main(["convert", str(model), "--out", str(model)]) == 2
    assert "is the folder of the model" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "none"), "--out", "/proc/x"]) == 2
    assert "/proc/x: cannot be written" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["convert", str(model), "--out", str(tmp_path)]) == 2
    assert "holds a network; give another folder, or --overwrite" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_published_checkpoints_go_to_their_own_command(tmp_path, capsys):
    missing = str(tmp_path / "none.pth")
    assert cli.main(["convert", "--from", "mmseg", missing, "--out", str(tmp_path / "out")]) == 2
    assert missing in capsys.readouterr().err
