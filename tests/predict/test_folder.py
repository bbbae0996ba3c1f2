"""Prediction into a folder: files, resumed runs and shared ones against an undisturbed run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.disk import files_limited_to
from torch import Tensor, nn

from fsanet.errors import InputError
from fsanet.predict import folder, workers
from fsanet.predict import result as results
from fsanet.predict.folder import predict_folder, result_stems
from fsanet.predict.predictor import Detector

# Entries of summary.json about the last run itself.
RUN_ONLY = {"seconds", "images_per_second", "done_before", "processes", "versions"}


class TinyNet(nn.Module):
    """Three classes from neighbourhoods of pixels."""

    classes = ("sky", "road", "tree")
    palette = ((0, 0, 255), (255, 0, 0), (0, 255, 0))

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def normalise(self, images: Tensor) -> Tensor:
        return images.float() / 255 - 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


class Strongest(nn.Module):
    """The strongest channel wins."""

    classes = ("red", "green", "blue")
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def normalise(self, images: Tensor) -> Tensor:
        return images / 255

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write(path: Path, seed: int, size: tuple[int, int] = (9, 10)) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in two folders and two sizes, and an unreadable one (3.png).

    Sorted, in batches of two: 0 2 | 3 4 | 6 8 | sub/1 sub/3 | sub/5 sub/7.
    """
    root = tmp_path_factory.mktemp("images")
    for number in range(9):
        size = (12, 10) if number == 4 else (9, 10)
        write(root / ("sub" if number % 2 else ".") / f"{number}.png", number, size)
    (root / "3.png").write_bytes(b"\x89PNG no more")
    return root


def predict(images: Any, out: Path, model: nn.Module | None = None, **options: Any) -> Any:
    given = {"batch_size": 2, "confidence": True, "progress": False} | options
    return predict_folder(TinyNet() if model is None else model, images, out, **given)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one undisturbed process."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    predict(images, out)
    return out


def contents(out: Path) -> dict[str, Any]:
    """The bytes of every file, and the entries of the summary that are not about the run itself."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    summary = json.loads(files.pop("summary.json"))
    assert summary.keys() >= RUN_ONLY
    return files | {"summary": {k: v for k, v in summary.items() if k not in RUN_ONLY}}


def records(out: Path) -> list[str]:
    return sorted(path.stem for path in out.rglob("*.json") if path.stem.isdigit())


# --- what is written


def test_folder_is_mirrored_and_unreadable_files_are_reported(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "deep/out"
    images = {
        "a": write(source / "a.png", 1),
        "x/a": write(source / "x/a.png", 2, (7, 9)),
        "y/a": write(source / "y/a.png", 3),
    }
    (source / "x/broken.jpg").write_bytes(b"\xff\xd8\xff")
    summary = predict(source, out, Strongest())
    for stem, image in images.items():
        with Image.open(out / f"{stem}_mask.png") as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), image.argmax(-1))
        one = json.loads((out / f"{stem}.json").read_text())
        assert one["image"] == str(source / f"{stem}.png")
        assert one["model"]["name"] == "Strongest"
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    kinds = ("_mask.png", "_overlay.png", "_confidence.png", ".json")
    expected = {f"{stem}{kind}" for stem in images for kind in kinds}
    assert written == expected | {"summary.json", "x/broken.json"}
    assert "or damaged" in json.loads((out / "x/broken.json").read_text())["error"]
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (summary["images"], summary["done_before"], summary["processes"]) == (3, 0, 1)
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
    out = tmp_path / "out"
    assert predict([tmp_path / "one", tmp_path / "two"], out, Strongest())["images"] == 4
    masks = [np.asarray(Image.open(path)) for path in out.rglob("*_mask.png")]
    assert len(masks) == 4
    for image in images:
        assert any(np.array_equal(mask, image.argmax(-1)) for mask in masks)
    assert json.loads((out / "summary.json").read_text())["images"] == 4


def test_stems() -> None:
    def names(*given: str) -> list[str]:
        return [stem.as_posix() for stem in result_stems([Path(name) for name in given])]

    assert names("a.png", "s/a.png", "b.c.jpg") == ["a", "s/a", "b.c"]
    assert names("a.png", "a.jpg") == ["a.png", "a.jpg"]
    assert names("a.png", "A.png") == ["a.png", "A.png-2"]  # one file where case is ignored
    assert names("a.png", "a.png", "a.png") == ["a.png", "a.png-2", "a.png-3"]
    assert names("summary.png") == ["summary.png"]
    assert len({n.casefold() for n in names("a.png", "a.jpg", "a.png.tif")}) == 3


def test_results_below_the_input_are_not_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    for _ in range(2):
        assert predict(tmp_path, tmp_path / "out")["images"] == 1
    with pytest.raises(InputError, match="is an input folder as well"):
        predict(tmp_path, tmp_path)
    with pytest.raises(InputError, match="all given images are in the output folder"):
        predict(tmp_path / "out/a_mask.png", tmp_path / "out")


def test_files_that_are_no_results_are_not_replaced(tmp_path: Path) -> None:
    """Masks to train on have the names of predicted ones."""
    out = tmp_path / "out"
    write(tmp_path / "photos" / "a.png", 0)
    write(tmp_path / "photos" / "x" / "b.png", 0)
    (out / "x").mkdir(parents=True)
    for file in (out / "a_mask.png", out / "x" / "b.json"):
        file.write_text("mine")
        with pytest.raises(InputError, match=rf"{file.name}: is there already, and is no result"):
            predict(tmp_path / "photos", out)
        assert file.read_text() == "mine"
        file.unlink()
    predict(tmp_path / "photos", out)
    predict(tmp_path / "photos", out)  # what is there now are results


def test_classes_of_one_name_are_counted_apart(images: Path, tmp_path: Path) -> None:
    model = TinyNet()
    expected = predict(images, tmp_path / "apart", model)["classes"]
    model.classes = ("same", "same", "other")
    for resume in (False, True):
        found = predict(images, tmp_path / "out", model, resume=resume)["classes"]
        assert [c["pixels"] for c in found] == [c["pixels"] for c in expected]


def test_nan_is_an_error_of_the_image(images: Path, tmp_path: Path) -> None:
    model = TinyNet()
    with torch.no_grad():
        model.layer.weight.fill_(1e38)
    for option in ("confidence", "entropy"):
        summary = predict(images, tmp_path / option, model, **{option: True})
        assert summary["images"] == 0
        assert all("gives nan for an image of" in one["error"] for one in summary["failed"][:1])


def test_settings_reach_the_predictor_and_the_drawing(tmp_path: Path) -> None:
    image = write(tmp_path / "a.png", 1, (20, 30))
    out = tmp_path / "out"
    views = {"window": 8, "stride": (4, 5), "scales": (1.0, 2.0), "flip": True}
    settings = predict(tmp_path / "a.png", out, Strongest(), **views)["settings"]
    assert settings == {
        **views,
        "window": (8, 8),
        "batch_size": 2,
        "dtype": None,
        "confidence": True,
        "alpha": 0.5,
        "legend": True,
        "device": "cpu",
    }
    with Image.open(out / "a_mask.png") as mask:
        assert (np.asarray(mask) == image.argmax(-1)).mean() > 0.9
    predict(tmp_path / "a.png", out, Strongest(), legend=False)
    with Image.open(out / "a_overlay.png") as overlay:
        assert overlay.size == (30, 20)
    predict(tmp_path / "a.png", tmp_path / "bare", Strongest(), overlay=False)
    assert not list((tmp_path / "bare").glob("*_overlay.png"))


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


def test_bar_and_skipped_files_go_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes a terminal of a pipe
    write(tmp_path / "a.png", 1)
    (tmp_path / "[b].png").touch()
    predict(tmp_path, tmp_path / "out", progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err
    assert "skipped" in captured.err
    assert "[b].png" in captured.err.replace("\n", "")
    predict(tmp_path, tmp_path / "out")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes, pipes and links")
def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = ["a", "z", os.fsdecode(b"bytes\xff"), "escape\x1b[31m\n", "ü" * 118]
    pixels = {name: write(tmp_path / "one.png", seed) for seed, name in enumerate(good)}
    for seed, name in enumerate(good):
        write(tmp_path / "one.png", seed)
        source.mkdir(exist_ok=True)
        (tmp_path / "one.png").replace(source / f"{name}.png")
    # Neither pictures nor the JSON file of the second fit into 255 bytes.
    for name in ("l" * 246, "m" * 251):
        write(source / f"{name}.png", 9)
    (source / "nowhere.png").symlink_to("gone.png")
    (source / "loop.png").symlink_to("loop.png")
    (source / "deep").symlink_to(source)
    (source / "folder.png").mkdir()
    os.mkfifo(source / "pipe\x1b[31m\n.png")
    summary = predict(source, out, Strongest())
    failed = {Path(entry["image"]).name: entry["error"] for entry in summary["failed"]}
    assert failed.keys() == {
        *("l" * 246 + ".png", "m" * 251 + ".png", "nowhere.png", "loop.png", "pipe\x1b[31m\n.png"),
    }
    assert all(error.isprintable() for error in failed.values())
    assert "File name too long" in failed["m" * 251 + ".png"]
    for name, image in pixels.items():
        with Image.open(out / f"{name}_mask.png") as mask:
            np.testing.assert_array_equal(np.asarray(mask), image.argmax(-1))
        assert json.loads((out / f"{name}.json").read_text())["image"] == f"{source}/{name}.png"
    assert json.loads((out / "summary.json").read_text())["failed"] == summary["failed"]
    again = predict(source, out, Strongest(), resume=True)
    assert (again["images"], len(again["failed"])) == (5, 5)


def test_a_full_disk_ends_the_run_and_resume_goes_on(images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "whole")
    refused = pytest.raises(InputError, match=r"cannot be written \(File too large\)")
    with files_limited_to(1000), refused:
        predict(images, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))
    predict(images, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_commands_do_not_share_a_folder(images: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    code = (
        "import fcntl, sys; file = open(sys.argv[1] + '/.lock', 'w'); "
        f"fcntl.lockf(file, {fcntl.LOCK_EX}); print('process 7', file=file, flush=True); "
        "print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="is being written by process 7") as caught:
            predict(images, tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "summary.json").exists()
    finally:
        other.kill()
        other.communicate()
    assert predict(images, tmp_path)["images"] == 9  # the lock ends with its process


class Watched(TinyNet):
    """Notes the images that are in it at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.now, self.met = threading.Lock(), list[torch.Size](), set[Any]()

    def forward(self, images: Tensor) -> Tensor:
        with self.lock:
            self.now.append(images.shape)
            self.met.add((len(self.now), len(set(self.now))))
        time.sleep(0.05)
        try:
            return super().forward(images)
        finally:
            with self.lock:
                self.now.remove(images.shape)


@pytest.mark.parametrize(("most", "together"), [(2 * 9 * 10, 2), (2 * 9 * 10 - 1, 1)])
def test_images_of_one_size_share_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, together: int
) -> None:
    monkeypatch.setattr(folder, "_MOST_COMPUTED", most)
    torch.set_num_threads(2)
    for number in range(12):
        write(tmp_path / f"in/{number}.png", number, (9, 10) if number % 3 else (10, 9))
    model = Watched()
    predict(tmp_path / "in", tmp_path / "out", model, batch_size=1)
    assert model.met == {(count + 1, 1) for count in range(together)}
    monkeypatch.setattr(folder, "Workers", lambda most: workers.Workers(1))
    predict(tmp_path / "in", tmp_path / "whole", model, batch_size=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# --- resumed


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing more is written."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a run ends when it is about to write its JSON file number ``count + 1``."""
    write_json = results.write_json
    left = count

    def write(path: Path, value: Any) -> Path:
        nonlocal left
        if left == 0:
            path.with_name(f".{path.name}.0123.partial").write_text("{")  # half a file
            raise Killed
        left -= 1
        return write_json(path, value)

    monkeypatch.setattr(results, "write_json", write)
    # In threads, others would go on writing what is predicted.
    monkeypatch.setattr(folder, "Workers", lambda most: workers.Workers(1))


def without_halves(out: Path) -> None:
    for path in out.rglob(".*.partial"):
        path.unlink()


def test_killed_and_resumed_equals_uninterrupted(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(5, patch)
        with pytest.raises(Killed):
            predict(images, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "running"
    assert records(tmp_path) == ["0", "2", "3", "4", "6", "8"]  # 3.json: why it is unreadable
    assert len(list(tmp_path.rglob("*_mask.png"))) == 6  # the last one has no JSON file yet
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[0-9].json")}
    summary = predict(images, tmp_path, resume=True)
    without_halves(tmp_path)
    assert contents(tmp_path) == contents(whole)
    # Of the five that were done, 4 is predicted again because its batch was not done.
    assert summary["done_before"] == 4
    untouched = {path.stem for path, time in kept.items() if path.stat().st_mtime_ns == time}
    assert untouched == {"0", "2", "6", "8"}


def test_resume_of_a_finished_run_predicts_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "images"
    shutil.copytree(images, good)
    (good / "3.png").unlink()
    first = predict(good, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(TinyNet, "forward", None)
    again = predict(good, tmp_path / "out", resume=True)
    assert again["done_before"] == first["images"] == 9
    assert contents(tmp_path / "out") == before


def test_unreadable_and_changed_images_are_tried_again(images: Path, tmp_path: Path) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    assert len(predict(source, tmp_path / "out")["failed"]) == 1
    shutil.copy(source / "0.png", source / "3.png")
    summary = predict(source, tmp_path / "out", resume=True)
    assert (summary["images"], summary["failed"], summary["done_before"]) == (10, [], 8)
    Image.open(source / "0.png").rotate(180).save(source / "0.png")
    assert predict(source, tmp_path / "out", resume=True)["done_before"] == 8
    predict(source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def damage(folder: Path, how: str) -> None:
    """What a crash, a full disk or a user may leave behind."""
    mask, record = folder / "6_mask.png", folder / "6.json"
    if how == "cut picture":
        mask.write_bytes(mask.read_bytes()[:-7])
    elif how == "picture of zeros":
        mask.write_bytes(bytes(mask.stat().st_size))
    elif how == "empty picture":
        mask.write_bytes(b"")
    elif how == "no picture":
        mask.unlink()
    elif how == "cut record":
        record.write_text(record.read_text()[:-40])
    elif how == "record of another run":
        about = json.loads(record.read_text())
        record.write_text(json.dumps(about | {"made": "0" * 16}))
    elif how == "record of no run":
        record.write_text('["6"]')
    elif how == "nested record":
        record.write_text("[" * 100_000)
    elif how == "record of bytes":
        record.write_bytes(b"\xff\x00")
    else:
        about = json.loads(record.read_text())
        changes = {
            "no classes": {"classes": None},
            "other classes": {"classes": about["classes"][:2]},
            "half a pixel": {"classes": [entry | {"pixels": 0.5} for entry in about["classes"]]},
            "picture elsewhere": {"files": {"mask": "/dev/zero"}},
            "no files": {"files": 3},
        }
        record.write_text(json.dumps(about | changes[how]))


@pytest.mark.parametrize(
    "how",
    [
        *("cut picture", "picture of zeros", "empty picture", "no picture"),
        *("cut record", "record of another run", "record of no run", "nested record"),
        *("record of bytes", "no classes", "other classes", "half a pixel", "picture elsewhere"),
        "no files",
    ],
)
def test_only_whole_results_of_this_run_count(
    images: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    damage(out, how)
    assert contents(out) != contents(whole)
    # 6 is predicted again with 8, of its batch; 4 is in one batch with the unreadable 3.
    assert predict(images, out, resume=True)["done_before"] == 6
    assert contents(out) == contents(whole)


def test_resume_with_other_settings_is_refused(images: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for options, line in [
        ({"flip": True}, r"with flip false, not true"),
        ({"window": (8, 6)}, r"with window null, not \[8, 6\]"),
        ({"scales": (1.0, 2.0)}, r"with scales \[1.0\], not \[1.0, 2.0\]"),
        ({"confidence": False}, r"with confidence true, not false"),
        ({"alpha": 0.25}, r"with alpha 0.5, not 0.25"),
        ({"batch_size": 3}, r"with batch_size 2, not 3"),
        ({"overlay": False}, r"with overlay null, not false"),
        (
            {"model": TinyNet(seed=1)},
            r"another model \(TinyNet \w{16}, now TinyNet \w{16}\)",
        ),
    ]:
        with pytest.raises(InputError, match=line) as caught:
            predict(images, out, resume=True, **options)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    for damaged in (b'{"images": 9}', b"[" * 100_000, b"\xff", b'{"settings": [], "model": 3}'):
        (out / "summary.json").write_bytes(damaged)
        with pytest.raises(InputError, match="does not say how its results were made"):
            predict(images, out, resume=True)
    predict(images, out, flip=True)  # without resume everything is predicted again
    assert contents(out) != contents(whole)
    predict(images, out)
    assert contents(out) == contents(whole)


def test_an_image_that_disappears_is_reported(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    forward = TinyNet.forward

    def remove(self: TinyNet, tiles: Tensor) -> Tensor:
        (source / "sub/7.png").unlink(missing_ok=True)
        return forward(self, tiles)

    monkeypatch.setattr(TinyNet, "forward", remove)
    summary = predict(source, tmp_path / "out")
    assert summary["images"] == 8
    assert [Path(entry["image"]).name for entry in summary["failed"]] == ["3.png", "7.png"]
    assert "no such image file" in summary["failed"][1]["error"]


# --- shared by processes

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


def as_process(
    patch: pytest.MonkeyPatch, rank: int, count: int, names: tuple[str, str, str] = TORCHRUN
) -> pytest.MonkeyPatch:
    for name, value in zip(names, (rank, count, rank), strict=True):
        patch.setenv(name, str(value))
    return patch


@pytest.mark.parametrize("names", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
@pytest.mark.parametrize("order", [(0, 1), (2, 0, 1)])
def test_several_processes_equal_one(
    images: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: tuple[int, ...],
    names: tuple[str, str, str],
) -> None:
    """Whichever process finishes last writes the summary."""
    shares, summaries = [], []
    for rank in order:
        before = set(records(tmp_path))
        as_process(monkeypatch, rank, len(order), names)
        summaries.append(predict(images, tmp_path))
        shares.append(sorted(set(records(tmp_path)) - before))
    assert summaries[:-1] == [None] * (len(order) - 1)
    assert (summaries[-1]["processes"], summaries[-1]["done_before"]) == (len(order), 0)
    assert contents(tmp_path) == contents(whole)
    if len(order) == 2:  # three of the five batches, and two
        assert shares == [["0", "2", "5", "6", "7", "8"], ["1", "3", "4"]]


def test_processes_resume_what_one_began(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("0.json", "sub/7.json"):
        (out / name).unlink()
    assert predict(images, out, resume=True) is not None  # one process goes on
    for name in ("0.json", "sub/7.json", "4.json"):
        (out / name).unlink()
    as_process(monkeypatch, 1, 2)
    assert predict(images, out, resume=True) is None  # batch 0 belongs to the other
    as_process(monkeypatch, 0, 2)
    assert predict(images, out, resume=True)["images"] == 9
    assert contents(out) == contents(whole)


def test_more_processes_than_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 2, 3)
    assert predict(images / "0.png", tmp_path) is None
    as_process(monkeypatch, 0, 3)
    assert predict(images / "0.png", tmp_path)["images"] == 1


def test_a_process_that_fails_leaves_its_images_to_resume(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(1, as_process(patch, 1, 2))
        with pytest.raises(Killed):
            predict(images, tmp_path)
    with monkeypatch.context() as patch:
        as_process(patch, 0, 2)
        assert predict(images, tmp_path) is None
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "running"
    predict(images, tmp_path, resume=True)
    without_halves(tmp_path)
    assert contents(tmp_path) == contents(whole)


# --- instances


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    pytest.importorskip("faster_coco_eval")
    from fsanet.models import MaskRcnnFsa

    torch.manual_seed(0)
    return MaskRcnnFsa(
        "test_resnet",
        num_classes=2,
        classes=("cat", "dog"),
        category_ids=(17, 18),
        positions=("p4",),
        k=2,
        fpn_channels=16,
        box_channels=16,
        mask_channels=8,
        min_size=64,
        max_size=64,
        detector_options={
            "rpn_post_nms_top_n_test": 10,
            "box_score_thresh": 0.0,
            "box_detections_per_img": 4,
        },
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, the second of which is unreadable, and one named like the file of results."""
    root = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(("a", "c", "d", "results")):
        write(root / f"{name}.png", number, (48, 64))
    (root / "b.png").write_bytes(b"")
    return root


def test_instances_are_those_of_each_image_by_its_number(
    detector: nn.Module, photos: Path, tmp_path: Path
) -> None:
    from fsanet.data.shapes import decode_masks

    summary = predict_folder(detector, photos, tmp_path, score=0.0)
    assert [Path(entry["image"]).name for entry in summary["files"]] == [
        *("a.png", "c.png", "d.png", "results.png"),
    ]
    assert [Path(entry["image"]).name for entry in summary["failed"]] == ["b.png"]
    assert summary["settings"] == {"score": 0.0, "alpha": 0.5, "names": True, "device": "cpu"}
    entries = json.loads((tmp_path / "results.json").read_text())
    assert len(entries) == summary["instances"] == sum(e["instances"] for e in summary["classes"])
    predictor = Detector(detector, score=0.0)
    for file in summary["files"]:
        found = predictor(file["image"])
        mine = [entry for entry in entries if entry["image_id"] == file["id"]]
        assert len(mine) == len(found) > 0
        masks = decode_masks([entry["segmentation"] for entry in mine], 48, 64)
        assert torch.equal(masks.bool(), found.masks)
        assert [e["category_id"] for e in mine] == [(17, 18)[label - 1] for label in found.labels]
    assert (tmp_path / "results.png.json").is_file()  # of the image of that name


def test_instances_interrupted_and_resumed_equal_uninterrupted(
    detector: nn.Module, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_folder(detector, photos, tmp_path / "whole", score=0.0)
    seen: list[str] = []
    predict_batch = Detector.predict_batch

    def watched(self: Detector, files: list[Path], *others: Any) -> Any:
        seen.append(files[0].name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return predict_batch(self, files, *others)

    monkeypatch.setattr(Detector, "predict_batch", watched)
    monkeypatch.setattr(folder, "Workers", lambda most: workers.Workers(1))  # in their order
    with pytest.raises(KeyboardInterrupt):
        predict_folder(detector, photos, tmp_path / "out", score=0.0)
    assert not (tmp_path / "out/results.json").exists()
    with pytest.raises(InputError, match=r"with score 0\.0, not 0\.5"):
        predict_folder(detector, photos, tmp_path / "out", resume=True)
    with pytest.raises(InputError, match="with names true, not false"):
        predict_folder(detector, photos, tmp_path / "out", score=0.0, legend=False, resume=True)
    summary = predict_folder(detector, photos, tmp_path / "out", score=0.0, resume=True)
    assert seen[4:] == ["b.png", "d.png", "results.png"]
    assert summary["done_before"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
