"""`fsanet predict`: options, what it prints, and what it imports."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet import cost
from fsanet.cli import main as cli
from fsanet.models import FsaNet
from fsanet.predict import precision
from fsanet.predict.launch import is_launched
from fsanet.predict.precision import Choice
from fsanet.predict.predictor import Predictor


def network(num_classes: int = 3) -> FsaNet:
    torch.manual_seed(0)
    return FsaNet(
        "resnet10t",
        num_classes=num_classes,
        output_stride=16,
        head_channels=8,
        aux_channels=0,
        zero_init=False,
        encoder_options={"channels": [8, 8, 8, 8], "stem_width": 8},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run: the network is in ``model/``."""
    folder = tmp_path_factory.mktemp("run")
    network().save_pretrained(folder / "model")
    return folder


def pictures(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


def test_one_photo(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = pictures(tmp_path, ("photo",)) / "photo.png"
    command = ["predict", str(photo), "--model", str(model), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--device", "cpu"]) == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("1 image in ")
    assert said.endswith(f"results in {tmp_path / 'out'}")
    with Image.open(tmp_path / "out/photo_mask.png") as mask:
        expected = Predictor(FsaNet.from_pretrained(model / "model"))(photo).mask.numpy()
        np.testing.assert_array_equal(np.asarray(mask), expected)
        assert len(np.unique(expected)) > 1
        assert mask.getpalette()[:9] == [v for colour in network().palette for v in colour]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("", {"window": None, "stride": None, "flip": False, "scales": [1.0], "batch_size": 1}),
        ("--window 32", {"window": [32, 32], "stride": [22, 22]}),
        ("--window 32 48 --stride 16", {"window": [32, 48], "stride": [16, 16]}),
        ("--window=32 --stride 16 24", {"stride": [16, 24]}),
        ("--scales 0.5 1.0 1.5", {"scales": [0.5, 1.0, 1.5]}),
        ("--flip --batch-size 2", {"flip": True, "batch_size": 2}),
        ("--flip true --batch_size 2", {"flip": True, "batch_size": 2}),
        ("--flip=false --offload", {"flip": False}),
        ("--dtype bfloat16 --confidence", {"dtype": "bfloat16", "confidence": True}),
        ("--alpha 0.25 --no-legend", {"alpha": 0.25, "legend": False}),
        ("--legend false --accelerator cpu --strategy ddp", {"legend": False, "device": "cpu"}),
    ],
)
def test_options_reach_the_prediction(
    model: Path, tmp_path: Path, arguments: str, settings: dict[str, Any]
) -> None:
    photo = str(pictures(tmp_path, ("photo",)) / "photo.png")
    where = [photo, "--model", str(model), "--out", str(tmp_path / "out")]
    assert cli.main(["predict", *where, "--device", "cpu", *arguments.split()]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["settings"] == {**summary["settings"], **settings}


def test_sub_folders_and_resume(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = pictures(tmp_path / "images", ("a", "x/b")), tmp_path / "out"
    arguments = ["predict", str(images), "--model", str(model), "--out", str(out)]
    arguments += ["--device", "cpu"]
    assert cli.main([*arguments, "--no-recursive", "--resume"]) == 0  # nothing was done yet
    assert "1 image in" in capsys.readouterr().out
    assert cli.main([*arguments, "--resume"]) == 0
    shown = capsys.readouterr()
    assert "2 images in" in shown.out
    assert "(1 of them before); results in" in shown.out
    assert shown.err == ""
    assert cli.main([*arguments, "--resume", "--no-legend"]) == 2
    assert "with legend true, not false" in capsys.readouterr().err
    (images / "c.png").write_bytes(b"")
    assert cli.main([*arguments, "--resume"]) == 2
    shown = capsys.readouterr()
    assert "2 images in" in shown.out
    assert "1 not read, the first" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--devices 2 --device cpu", "--device cpu: is for a single process"),
        ("--num-nodes 2 --device cpu", "--device cpu: is for a single process"),
        ("--num_nodes 2", "NODE_RANK is not set"),
        ("--strategy deepspeed", "strategy"),
        ("--accelerator abacus", "accelerator abacus"),
        ("--device abacus", "--device abacus"),
        ("--devices none", "devices none"),
        ("--window 1 2 3", "window"),
        ("--stride 8", "there is no window"),
        ("--dtype float64", "dtype"),
        ("--dtype auto --devices 2", "--dtype auto: is for a single process"),
        ("--score 0.3", "score: for instance segmentation only"),
        ("--alpha 3", "alpha is 3.0"),
        ("--bath-size 3", "did you mean --batch-size"),
        ("--window 32 --stride 33", "exceeds window"),
        ("--scales 1e9", "scales are"),
        ("--scales nan", "scales"),
        ("--scales" + 100 * " 1.0", "100 scales"),
        ("--batch-size 1000000000", "batch_size is 1000000000"),
        ("--score nan", "score"),
        ("--alpha nan", "alpha"),
        ("--device meta", "--device meta: not available"),
        ("--devices 5000 --accelerator cpu", "devices 5000"),
        ("--num-nodes 0", "num_nodes is 0"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    images = pictures(tmp_path / "images", ("a",))
    common = ["predict", str(images), "--model", str(model), "--out", str(tmp_path / "out")]
    assert cli.main([*common, *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_whose_name_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "a\udcff.png", "--model", "nowhere", "--out", "out"]) == 2
    assert r"a\udcff.png: is not UTF-8 text; give the folder" in capsys.readouterr().err


def test_an_output_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "a.png", "--model", "nowhere"]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_several_processes_print_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the processes do that torch's launcher would start; test_launch.py starts real ones."""
    images = pictures(tmp_path / "images")
    (images / "bad.png").write_bytes(b"")

    def launch(arguments: list[str], out: Path, *, devices: str, **where: Any) -> bool:
        if is_launched() or devices == "1":
            return False
        for rank in ("1", "0"):
            with monkeypatch.context() as patch:
                variables = {"RANK": rank, "WORLD_SIZE": devices, "LOCAL_RANK": rank}
                for name, value in variables.items():
                    patch.setenv(name, value)
                patch.setenv("TORCHELASTIC_RUN_ID", "fsanet-predict")
                assert cli.main(arguments) == 0
        return True

    monkeypatch.setattr("fsanet.predict.launch.launch", launch)
    arguments = ["predict", str(images), "--model", str(model), "--accelerator", "cpu"]
    assert cli.main([*arguments, "--out", str(tmp_path / "two"), "--devices", "2"]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("\n") == shown.err.count("\n") == 1
    assert "4 images in" in shown.out
    assert "1 not read" in shown.err
    assert json.loads((tmp_path / "two/summary.json").read_text())["processes"] == 2
    assert cli.main([*arguments, "--out", str(tmp_path / "one"), "--device", "cpu"]) == 2
    for path in (tmp_path / "one").rglob("*.*"):
        if path.name != "summary.json":
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_errors_of_a_launched_process_go_to_the_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fsanet-predict")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    photo = pictures(tmp_path, ("a",)) / "a.png"
    arguments = [str(photo), "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert cli.main(["predict", *arguments, "--device", "cpu"]) == 2
    assert capsys.readouterr().err == ""
    error = json.loads((tmp_path / "error.json").read_text())["message"]["message"]
    assert error.startswith("InputError: ")
    assert f"{tmp_path / 'none'}" in error


def test_interrupted_in_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, out = pictures(tmp_path / "images"), tmp_path / "out"
    masks = Predictor.masks
    calls = []

    def interrupted(self: Predictor, images: torch.Tensor, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return masks(self, images, **options)

    monkeypatch.setattr(Predictor, "masks", interrupted)
    arguments = ["predict", str(images), "--model", str(model), "--out", str(out)]
    assert cli.main([*arguments, "--device", "cpu"]) == 130
    shown = capsys.readouterr()
    line = "fsanet: interrupted; the same command with --resume goes on\n"
    assert (shown.out, shown.err) == ("", line)
    assert cli.main([*arguments, "--device", "cpu", "--resume"]) == 0
    assert "4 images in" in (line := capsys.readouterr().out)
    # The last image may have been with another thread.
    assert "(2 of them before)" in line or "(3 of them before)" in line


def test_cityscapes_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network(19).save_pretrained(tmp_path / "model")
    names = ("berlin/berlin_000000_000019_leftImg8bit", "bonn/bonn_000001_000019_leftImg8bit")
    images, file = pictures(tmp_path / "images", names), tmp_path / "all.zip"
    arguments = ["predict", str(images), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert cli.main([*arguments, "--cityscapes-export", str(file)]) == 0
    shown = capsys.readouterr()
    assert f"results in {file}" in shown.out
    assert "warning: 2 predictions are not 2048 x 1024" in shown.err
    assert {path.name for path in tmp_path.iterdir()} == {"model", "images", "all.zip"}
    alone = file.read_bytes()
    out = tmp_path / "out"
    both = ["--cityscapes-export", str(file), "--out", str(out), "--resume"]
    assert cli.main([*arguments, *both]) == 0
    assert file.read_bytes() == alone
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == [
            "berlin_000000_000019_gtFine_labelIds.png",
            "bonn_000001_000019_gtFine_labelIds.png",
        ]
    assert (out / f"{names[0]}_overlay.png").is_file()
    (images / "photo.png").write_bytes((images / f"{names[0]}.png").read_bytes())
    assert cli.main([*arguments, "--cityscapes-export", str(file)]) == 2
    assert "photo.png: not named like an image of Cityscapes" in capsys.readouterr().err


def test_faster_dtype_is_measured_once_and_kept(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(tmp_path / "images", ("a", "b"))
    (images / "0.png").write_bytes(b"")
    where = ["predict", str(images), "--model", str(model), "--out", str(tmp_path / "out")]
    arguments = [*where, "--device", "cpu", "--no-overlay"]

    def used() -> Any:
        return json.loads((tmp_path / "out/summary.json").read_text())["settings"]["dtype"]

    choices = {
        "bfloat16": Choice((40, 50), float32=2.0, bfloat16=1.0, agreement=0.995),
        None: Choice((40, 50), float32=2.0, bfloat16=1.0, agreement=0.994),
    }
    for dtype, choice in choices.items():
        monkeypatch.setattr(precision, "choose_dtype", lambda *_, choice=choice, **__: choice)
        cli.main([*arguments, "--dtype", "auto"])
        name = dtype or "float32"
        line = f"where {100 * choice.agreement:.3f} % have the same class: {name} is used"
        assert line in capsys.readouterr().out
        assert used() == dtype
    assert Choice((40, 50), float32=1.0, bfloat16=2.0, agreement=1.0).dtype is None

    (images / "0.png").unlink()
    monkeypatch.setattr(cost, "has_bfloat16", lambda: True)
    cli.main([*arguments, "--dtype", "bfloat16"])
    assert cli.main([*arguments, "--dtype", "auto", "--resume"]) == 0
    assert used() == "bfloat16"  # where a second measurement would choose float32


def test_bfloat16_without_instructions_is_said_to_be_slow(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = str(pictures(tmp_path, ("photo",)) / "photo.png")
    where = ["predict", photo, "--model", str(model), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(cost, "has_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="is slower with it than in float32"):
        assert cli.main([*where, "--device", "cpu", "--dtype", "bfloat16"]) == 0
    monkeypatch.setattr(cost, "has_bfloat16", lambda: True)
    with warnings.catch_warnings(action="error"):
        assert cli.main([*where, "--device", "cpu", "--dtype", "bfloat16"]) == 0
