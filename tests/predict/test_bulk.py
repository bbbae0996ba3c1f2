"""One run against interrupted, resumed and shared ones: the same files, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.errors import InputError
from fsanet.predict import bulk_state
from fsanet.predict.folder import predict_to_folder
from fsanet.predict.processes import Processes

WORKER = Path(__file__).parents[1] / "support" / "bulk_worker.py"
_SPEC = importlib.util.spec_from_file_location("bulk_worker", WORKER)
worker = importlib.util.module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(worker)  # type: ignore[union-attr]
TinyNet = worker.TinyNet
OF_A_RUN = {"seconds", "images_per_second", "done_before", "processes", "versions"}
BATCH = 2


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in two folders and two sizes, and one that cannot be read."""
    root = tmp_path_factory.mktemp("images")
    (root / "sub").mkdir()
    for number in range(9):
        height = 12 if number == 4 else 9
        pixels = np.random.default_rng(number).integers(0, 256, (height, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / ("sub" if number % 2 else ".") / f"{number}.png")
    (root / "3.png").write_bytes(b"\x89PNG no more")
    return root


def predict(images: Path, out: Path, **options: Any) -> dict[str, Any]:
    given = {"batch_size": BATCH, "confidence": True, "progress": False} | options
    return predict_to_folder(TinyNet(), images, out, **given)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that nothing disturbs."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    predict(images, out)
    return out


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; of the summary all that is not of the run itself."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    summary = json.loads(files.pop("summary.json"))
    assert summary.keys() >= OF_A_RUN
    return files | {"summary": {k: v for k, v in summary.items() if k not in OF_A_RUN}}


def start(
    images: Path | list[str],
    out: Path,
    *,
    trouble: dict[str, Any] | None = None,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    given = {"batch_size": BATCH, "confidence": True, "progress": False} | options
    given.setdefault("accelerator", "cpu")
    paths = [str(path) for path in ([images] if isinstance(images, Path) else images)]
    order: dict[str, Any] = {"images": paths, "out": str(out), "options": given}
    if trouble is not None:
        order["trouble"] = trouble
    if log is not None:
        order["log"] = str(log)
    clean = {k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
    return subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(order)],
        env=clean | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], timeout: float = 200) -> tuple[int, str, str]:
    """Exit code, stdout, stderr, once this process and all that share its pipes have ended."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_every_image_once_and_what_is_written(images: Path, whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["images"], summary["done_before"], summary["processes"]) == (9, 0, 1)
    assert [Path(entry["image"]).name for entry in summary["failed"]] == ["3.png"]
    records = sorted(whole.rglob("[0-9].json"))
    assert [path.stem for path in sorted(records, key=lambda p: p.stem)] == list("012345678")
    pixels = np.zeros(3, int)
    for path in whole.rglob("*_mask.png"):
        pixels += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=3)
    assert [entry["pixels"] for entry in summary["classes"]] == pixels.tolist()
    assert (pixels > 0).all()


def test_killed_and_resumed_equals_uninterrupted(images: Path, whole: Path, tmp_path: Path) -> None:
    code, _, err = ended(start(images, tmp_path, trouble={"rank": 0, "after": 5, "how": "kill"}))
    assert code == -9, err
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "running"
    assert len(list(tmp_path.rglob("[0-9].json"))) == 5
    assert len(list(tmp_path.rglob("*_mask.png"))) == 6  # the sixth has no JSON file yet
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[0-9].json")}
    summary = predict(images, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)
    # Batches are 0, 2 | 3 (not readable), 4 | 6, 8 | sub/1, sub/3 | sub/5, sub/7: five were done,
    # of which 4 is made again because its batch was not.
    assert summary["done_before"] == 4
    untouched = {path.stem for path, time in kept.items() if path.stat().st_mtime_ns == time}
    assert untouched == {"0", "2", "6", "8"}


def test_two_processes_equal_one(images: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    terminal = {"FORCE_COLOR": "1"}
    code, told, err = ended(
        start(images, out, devices=2, progress=True, log=tmp_path, environment=terminal)
    )
    assert code == 0, err
    assert contents(out) == contents(whole)
    answer = json.loads(told)
    assert answer["summary"]["processes"] == 2
    assert answer["lightning"]
    assert "10/10" in err  # of all, not of the first process alone
    # Each once: three of the five batches to the first process, two to the other.
    assert json.loads((tmp_path / "0.json").read_text()) == [
        f"{name}.json" for name in ("0", "2", "6", "8", "5", "7")
    ]
    assert json.loads((tmp_path / "1.json").read_text()) == ["4.json", "1.json", "3.json"]


@pytest.mark.slow
def test_two_nodes_of_slurm_resume_what_one_process_began(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    for name in ("0.json", "sub/7.json"):
        (tmp_path / "out" / name).unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for node in ("0", "1"):
        variables = {"NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "STEP_NUM_TASKS": "2"}
        variables |= {"PROCID": node, "NODEID": node, "LOCALID": "0", "JOB_ID": "7"}
        slurm = {f"SLURM_{name}": value for name, value in variables.items()}
        slurm |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running.append(start(images, tmp_path / "out", num_nodes=2, resume=True, environment=slurm))
    codes, outs, errs = zip(*map(ended, running), strict=True)
    assert codes == (0, 0), errs
    assert contents(tmp_path / "out") == contents(whole)
    summary = json.loads(outs[0])["summary"]
    assert (summary["processes"], summary["done_before"]) == (2, 4)
    assert outs[1] == ""


@pytest.mark.slow
def test_more_processes_than_images(images: Path, whole: Path, tmp_path: Path) -> None:
    code, out, err = ended(start([str(images / "0.png")], tmp_path, devices=3, strategy="ddp"))
    assert code == 0, err
    assert json.loads(out)["summary"]["images"] == 1
    for name in ("0_mask.png", "0_confidence.png", "0_overlay.png", "0.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("rank", "how", "line"),
    [
        (1, "error", "process 1 failed (ZeroDivisionError: no more room)"),
        pytest.param(1, "full", "InputError: no more room", marks=pytest.mark.slow),
        # The other may be ended by Lightning before it says anything.
        pytest.param(1, "kill", "", marks=pytest.mark.slow),
        pytest.param(0, "kill", "another process is gone", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_leaves_no_other_waiting(
    images: Path, whole: Path, tmp_path: Path, rank: int, how: str, line: str
) -> None:
    trouble = {"rank": rank, "after": 1, "how": how}
    # ended() waits for all processes, as all of them hold the pipes.
    code, out, err = ended(start(images, tmp_path, devices=2, trouble=trouble), timeout=240)
    assert code != 0
    assert out == ""
    assert line in err
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "running"
    predict(images, tmp_path, resume=True)
    assert contents(tmp_path) == contents(whole)


def test_one_process_does_not_wait_for_lightning(images: Path, tmp_path: Path) -> None:
    code, out, err = ended(start(images, tmp_path, accelerator="auto"))
    assert code == 0, err
    assert json.loads(out)["lightning"] is False


def test_resume_of_a_finished_run_does_nothing_and_says_the_same(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "images"
    shutil.copytree(images, good)
    (good / "3.png").unlink()
    first = predict(good, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(TinyNet, "forward", None)  # nothing may be predicted
    again = predict(good, tmp_path / "out", resume=True)
    assert again["done_before"] == first["images"] == 9
    assert contents(tmp_path / "out") == before


def test_what_failed_is_tried_again(images: Path, tmp_path: Path) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    assert len(predict(source, tmp_path / "out")["failed"]) == 1
    shutil.copy(source / "0.png", source / "3.png")
    summary = predict(source, tmp_path / "out", resume=True)
    assert (summary["images"], summary["failed"], summary["done_before"]) == (10, [], 8)
    predict(source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def damage(folder: Path, how: str) -> None:
    """Something a crash, a full disk or a user may leave behind."""
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


@pytest.mark.parametrize(
    "how",
    [
        *("cut picture", "picture of zeros", "empty picture", "no picture"),
        *("cut record", "record of another run", "record of no run"),
    ],
)
def test_only_whole_results_of_this_run_count(
    images: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    damage(out, how)
    assert contents(out) != contents(whole)
    # 6 is made again with 8, of its batch, and 4, which is in one batch with the unreadable 3.
    assert predict(images, out, resume=True)["done_before"] == 6
    assert contents(out) == contents(whole)


def test_a_changed_image_is_predicted_again(images: Path, tmp_path: Path) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    predict(source, tmp_path / "out")
    Image.open(source / "0.png").rotate(180).save(source / "0.png")
    predict(source, tmp_path / "out", resume=True)
    predict(source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


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
    ]:
        with pytest.raises(InputError, match=line) as caught:
            predict(images, out, resume=True, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"another model \(TinyNet \w{16}, now TinyNet \w{16}\)"):
        predict_to_folder(
            TinyNet(seed=1), images, out, resume=True, batch_size=BATCH, confidence=True
        )
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    (out / "summary.json").write_text('{"images": 9}')  # of a version that could not resume
    with pytest.raises(InputError, match="does not say how its results were made"):
        predict(images, out, resume=True)
    predict(images, out, flip=True)  # without resume all is made anew
    assert contents(out) != contents(whole)
    predict(images, out)
    assert contents(out) == contents(whole)


def test_a_file_that_goes_away_meanwhile_is_noted(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "images"
    shutil.copytree(images, source)
    forward = TinyNet.forward

    def remove(self: torch.nn.Module, tiles: torch.Tensor) -> torch.Tensor:
        (source / "sub/7.png").unlink(missing_ok=True)
        return forward(self, tiles)

    monkeypatch.setattr(TinyNet, "forward", remove)
    summary = predict(source, tmp_path / "out")
    assert summary["images"] == 8
    assert [Path(entry["image"]).name for entry in summary["failed"]] == ["3.png", "7.png"]
    assert "was it removed?" in summary["failed"][1]["error"]


def test_processes_have_to_see_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differing(self: Processes, value: Any) -> list[Any]:
        return [value, value if value is None else "0" * 16]

    with monkeypatch.context() as patch:
        patch.setattr(Processes, "collect", differing)
        with pytest.raises(InputError, match="have loaded different models"):
            predict(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(bulk_state, "_SEEN_WITHIN", 0.0)
    for present in (None, '{"run": "other"}', "{"):
        if present is not None:
            (tmp_path / "summary.json").write_text(present)
        with pytest.raises(InputError, match="not the same folder for all processes"):
            bulk_state.check_shared(tmp_path, "mine")
    (tmp_path / "summary.json").write_text('{"run": "mine"}')
    bulk_state.check_shared(tmp_path, "mine")
