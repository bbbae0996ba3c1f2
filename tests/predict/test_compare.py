"""The comparison of backends: what agrees, what it scores, and a row for what fails."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.onnx_files import WEIGHTS
from support.tiny import thin_fsanet

pytest.importorskip("onnxscript")

from fsanet import load_model
from fsanet.cli.main import main
from fsanet.cost import Outcome
from fsanet.data.images import read_image
from fsanet.errors import InputError
from fsanet.predict import compare
from fsanet.predict.predictor import Predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    thin_fsanet().save_pretrained(folder / "network")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
    for index in range(2):
        pixels = rng.integers(0, 256, (75, 90 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"data/images/{index}.png")
        label = rng.integers(0, len(WEIGHTS), pixels.shape[:2], dtype=np.uint8)
        label[:5] = 255
        Image.fromarray(label).save(folder / f"data/masks/{index}.png")
    return folder


@pytest.fixture
def two_backends(monkeypatch):
    """PyTorch and ONNX Runtime, in this process; any other backend fails."""

    def run(measure, name, *arguments, memory, threads):
        if name not in ("PyTorch", "ONNX Runtime"):
            return Outcome({}, "predict", "failed (no such thing)")
        found = {}
        for one in measure(name, *arguments):
            found |= one if isinstance(one, dict) else {}
        return Outcome(found, "predict", None)

    monkeypatch.setattr(compare, "run_isolated", run)


def expected_miou(folder):
    predictor = Predictor(load_model(folder / "network"))
    pairs = []
    for index in range(2):
        label = np.asarray(Image.open(folder / f"data/masks/{index}.png"))
        mask = predictor(read_image(folder / f"data/images/{index}.png")).mask.numpy()
        pairs.append((label[label != 255], mask[label != 255]))
    label, mask = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ious = [
        ((label == c) & (mask == c)).sum() / ((label == c) | (mask == c)).sum() for c in range(3)
    ]
    return float(np.mean(ious))


@pytest.mark.slow
def test_table(folder, tmp_path, capsys, monkeypatch, two_backends):
    """At two sizes that were not traced; the scores are those of the network."""
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "net.onnx"
    arguments = [str(folder / "network"), "--out", str(file), "--size", "64", "64"]
    assert main(["export", *arguments, "--compare", str(folder / "data/images")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {}
    for line in lines:
        name, *cells = [cell.strip() for cell in line.strip("│").split("│")]
        rows[name] = cells
    for name in ("PyTorch, compiled", "OpenVINO", "ONNX Runtime, int8"):
        assert rows[name][1] == "failed (no such thing)"
    miou = 100 * expected_miou(folder)
    for name in ("PyTorch", "ONNX Runtime"):
        size, load, milliseconds, _, agreement, score = map(float, rows[name])
        assert min(load, milliseconds) > 0
        assert agreement >= 99.9
        assert score == pytest.approx(miou, abs=0.1)
    assert size == pytest.approx(file.stat().st_size / 1e6, abs=0.1)
    assert float(rows["PyTorch"][4]) == 100


def test_missing_images_are_found_before_the_export(tmp_path, capsys):
    """Which takes a minute for a large network; this one is missing, too, and not asked for."""
    missing = str(tmp_path / "photos")
    assert main(["export", str(tmp_path / "network"), "--compare", missing]) == 2
    assert f"{missing}: no such file or folder" in capsys.readouterr().err


def test_labels_that_do_not_fit_are_one_line(folder, tmp_path, two_backends):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images/a.png")
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "masks/a.png")
    (tmp_path / "net.onnx").touch()
    with pytest.raises(InputError, match=r"a\.png.*7"):
        compare.compare_backends(folder / "network", tmp_path / "net.onnx", [tmp_path / "images"])


def test_images_and_labels_are_read_before_a_backend_runs(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_isolated", lambda *_, **__: pytest.fail("has run"))
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "net.onnx").touch()
    arguments = folder / "network", tmp_path / "net.onnx", [tmp_path / "images"]
    (tmp_path / "images/a.png").write_text("no image")
    with pytest.raises(InputError, match=r"a\.png: not an image"):
        compare.compare_backends(*arguments)
    Image.new("RGB", (64, 64)).save(tmp_path / "images/a.png")
    Image.new("L", (32, 64)).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match=r"labels are 32x64 pixels, but their image .* is 64x64"):
        compare.compare_backends(*arguments)


@pytest.mark.slow
def test_every_backend_in_a_process_of_its_own(folder, tmp_path):
    assert torch.get_num_threads() > 0
    main(["export", str(folder / "network"), "--out", str(tmp_path / "net.onnx")])
    rows = compare.compare_backends(
        folder / "network", tmp_path / "net.onnx", [folder / "data/images"]
    )
    measured = [row for row in rows if row.problem is None]
    assert {"PyTorch", "ONNX Runtime"} <= {row.name for row in measured}
    assert all(row.milliseconds > 0 and row.peak is not None for row in measured)
