from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.errors import InputError
from fsanet.predict.bulk import result_stems
from fsanet.predict.folder import predict_to_folder


class Strongest(nn.Module):
    """The strongest channel wins."""

    classes = ("red", "green", "blue")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def normalise(self, images: Tensor) -> Tensor:
        return images / 255

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gain


def write(path: Path, seed: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def predict(paths: Any, out: Path, **options: Any) -> dict[str, Any]:
    return predict_to_folder(Strongest(), paths, out, progress=False, **options)


def test_folder_is_mirrored_and_bad_files_are_noted(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "deep/out"
    images = {
        "a": write(source / "a.png", 1),
        "x/a": write(source / "x/a.png", 2, (7, 9)),
        "y/a": write(source / "y/a.png", 3),
    }
    (source / "x/broken.jpg").write_bytes(b"\xff\xd8\xff")
    summary = predict(source, out, confidence=True, batch_size=2)
    for stem, image in images.items():
        with Image.open(out / f"{stem}_mask.png") as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), image.argmax(-1))
        assert (out / f"{stem}_overlay.png").is_file()
        assert (out / f"{stem}_confidence.png").is_file()
        one = json.loads((out / f"{stem}.json").read_text())
        assert one["image"] == str(source / f"{stem}.png")
        assert one["model"]["name"] == "Strongest"
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert len(files) == 3 * 4 + 1
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["images"] == 3
    assert [entry["image"] for entry in summary["failed"]] == [str(source / "x/broken.jpg")]
    assert "or damaged" in summary["failed"][0]["error"]
    counts = sum(np.bincount(i.argmax(-1).ravel(), minlength=3) for i in images.values())
    assert [entry["pixels"] for entry in summary["classes"]] == counts.tolist()
    assert summary["pixels"] == counts.sum()
    assert sum(entry["fraction"] for entry in summary["classes"]) == pytest.approx(1)


def test_equal_names_do_not_collide(tmp_path: Path) -> None:
    images = [
        write(tmp_path / "one/a.png", 1),
        write(tmp_path / "one/a.bmp", 2),
        write(tmp_path / "two/a.png", 3),
        write(tmp_path / "two/summary.png", 4),
    ]
    summary = predict([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert summary["images"] == 4
    masks = [np.asarray(Image.open(p)) for p in (tmp_path / "out").rglob("*_mask.png")]
    assert len(masks) == 4
    for image in images:
        assert any(np.array_equal(mask, image.argmax(-1)) for mask in masks)
    assert "images" in json.loads((tmp_path / "out/summary.json").read_text())


def test_stems() -> None:
    def names(*given: str) -> list[str]:
        return [stem.as_posix() for stem in result_stems([Path(name) for name in given])]

    assert names("a.png", "s/a.png", "b.c.jpg") == ["a", "s/a", "b.c"]
    assert names("a.png", "a.jpg") == ["a.png", "a.jpg"]
    assert names("a.png", "A.png") == ["a.png", "A.png-2"]  # one file where case does not count
    assert names("a.png", "a.png", "a.png") == ["a.png", "a.png-2", "a.png-3"]
    assert names("summary.png") == ["summary.png"]
    assert len({n.casefold() for n in names("a.png", "a.jpg", "a.png.tif")}) == 3


def test_results_below_the_input_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    for _ in range(2):
        assert predict(tmp_path, tmp_path / "out")["images"] == 1
    with pytest.raises(InputError, match="is an input folder as well"):
        predict(tmp_path, tmp_path)
    with pytest.raises(InputError, match="all images given lie in the output folder"):
        predict(tmp_path / "out/a_mask.png", tmp_path / "out")


def test_settings_reach_the_predictor(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png", 1, (20, 30))
    out = tmp_path / "out"
    settings = predict(
        [tmp_path / "a.png"], out, window=8, stride=(4, 5), scales=(1.0, 2.0), flip=True
    )["settings"]
    assert settings["window"] == (8, 8)
    assert settings["stride"] == (4, 5)
    assert settings["scales"] == (1.0, 2.0)
    assert settings["flip"] is True
    with Image.open(out / "a_mask.png") as mask:
        assert (np.asarray(mask) == image.argmax(-1)).mean() > 0.9
    predict([tmp_path / "a.png"], out, legend=False)
    with Image.open(out / "a_overlay.png") as overlay:
        assert overlay.size == (30, 20)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    write(image, 1)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for paths, out, message in [
        (tmp_path / "empty", tmp_path / "out", "no image in this folder"),
        (tmp_path / "gone", tmp_path / "out", "no such file or folder"),
        (image, tmp_path / "file", "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            predict(paths, out)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="alpha is 2"):
        predict(image, tmp_path / "out", alpha=2)
    assert not (tmp_path / "out").exists()


def test_models_that_are_not_there(tmp_path: Path) -> None:
    model = Strongest()
    assert load_model(model) is model
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "none")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"run/model: no model\.safetensors"):
        load_model(str(run))


def test_a_real_network_from_its_folder(tmp_path: Path) -> None:
    from fsanet.models import FsaNet

    options = {"encoder": "resnet10t", "output_stride": 16, "head_channels": 8, "aux_channels": 0}
    small = {"channels": [8, 8, 8, 8], "stem_width": 8}
    torch.manual_seed(0)
    model = FsaNet(num_classes=3, encoder_options=small, zero_init=False, **options).eval()
    model.save_pretrained(tmp_path / "run/model")
    image = write(tmp_path / "a.png", 1, (37, 51))  # no multiple of anything
    summary = predict_to_folder(
        tmp_path / "run", tmp_path / "a.png", tmp_path / "out", progress=False
    )
    assert summary["model"]["name"] == "FsaNet"
    with torch.inference_mode():
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = model(model.normalise(tensor)).argmax(1)[0]
    with Image.open(tmp_path / "out/a_mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), expected.numpy())
        assert mask.getpalette()[:9] == [v for colour in model.palette for v in colour]
    for window in (32, 33):  # as below the image, above it, and odd
        predict_to_folder(
            model, tmp_path / "a.png", tmp_path / "out", window=window, flip=True, progress=False
        )
        with Image.open(tmp_path / "out/a_mask.png") as mask:
            assert mask.size == (51, 37)


def test_progress_and_skipped_files_go_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes a terminal of a pipe
    write(tmp_path / "a.png", 1)
    (tmp_path / "[b].png").touch()
    predict_to_folder(Strongest(), tmp_path, tmp_path / "out", progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    text = captured.err.replace("\n", "")
    assert "skipped" in text
    assert "[b].png" in text
    predict(tmp_path, tmp_path / "out")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
