"""The processes of one command: who they are, and how torch's launcher starts and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsanet.errors import InputError
from fsanet.models import FsaNet
from fsanet.predict import launch as launching
from fsanet.predict.folder import predict_folder
from fsanet.predict.launch import Process, choose_devices, launch, process_device, this_process

PYTHON = sys.executable  # the processes of some tests run a stub

VARIABLES = (
    *("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    *("MASTER_ADDR", "MASTER_PORT"),
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("variables", "process"),
    [
        ({}, Process(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(5, 8, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Process(1, 2, 0)),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"},
            Process(3, 8, 1),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Process(0, 1, 0)),  # a script without srun
    ],
)
def test_which_process_this_is(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], process: Process
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert this_process() == process


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK=abc, WORLD_SIZE=2, LOCAL_RANK=0: expected"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": ""}, "LOCAL_RANK=:"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many"),
    ],
)
def test_variables_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=line):
        this_process()


@pytest.mark.parametrize(
    ("count", "accelerator", "devices", "chosen"),
    [
        (0, "auto", "1", ["cpu"]),
        (0, "auto", "auto", ["cpu"]),
        (0, "cpu", "3", ["cpu"] * 3),
        (4, "cpu", "2", ["cpu"] * 2),
        (4, "auto", "1", ["cuda:0"]),
        (4, "auto", "auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, "gpu", "-1", ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, "gpu", "2", ["cuda:0", "cuda:1"]),
        (4, "gpu", "1,3", ["cuda:1", "cuda:3"]),
        (4, "cuda", "3,", ["cuda:3"]),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, count: int, accelerator: str, devices: str, chosen: list[str]
) -> None:
    gpus(monkeypatch, count)
    assert choose_devices(accelerator, devices) == chosen


@pytest.mark.parametrize(
    ("accelerator", "devices", "line"),
    [
        ("abacus", "1", "accelerator abacus: not available"),
        ("mps", "1", "accelerator mps: not available"),
        ("cpu", "0", "devices 0: give"),
        ("cpu", "many", "devices many: give"),
        ("gpu", "5", "devices 5: this machine has 4"),
        ("gpu", "0,4", "devices 0,4: this machine has 4"),
        ("gpu", "0,-4", "devices 0,-4: give"),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, devices: str, line: str
) -> None:
    gpus(monkeypatch, 4)
    with pytest.raises(InputError, match=line):
        choose_devices(accelerator, devices)


def test_each_process_has_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    assert process_device("auto", "1") == "cuda:0"
    for name, value in (("RANK", "6"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    assert process_device("auto", "1") == "cuda:2"  # torchrun has said how many
    assert process_device("gpu", "0,1,3") == "cuda:3"
    gpus(monkeypatch, 1)  # SLURM may show each task its own only
    assert process_device("auto", "1") == "cuda:0"


def test_only_several_processes_are_launched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(monkeypatch, 0)
    assert not launch(["predict"], tmp_path / "out", accelerator="cpu", devices="1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not launch(["predict"], tmp_path / "out", accelerator="cpu", devices="1")
    assert not launch(["predict"], tmp_path / "out", accelerator="cpu", devices="2", num_nodes=2)
    with pytest.raises(InputError, match="4 processes were started, but devices x num_nodes is 3"):
        launch(["predict"], tmp_path / "out", accelerator="cpu", devices="3")


def test_several_machines_have_to_find_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NODE_RANK is not set"):
        launch(["predict"], tmp_path / "out", accelerator="cpu", devices="1", num_nodes=2)


def stub(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """A shell script in place of the Python interpreter that the processes run."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\ncd {folder}\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(launching.sys, "executable", str(file))


def test_the_same_command_runs_in_each_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub(monkeypatch, tmp_path, 'echo "$RANK of $WORLD_SIZE on $LOCAL_RANK: $@" > $RANK')
    assert launch(["predict", "a b.png"], tmp_path / "out", accelerator="cpu", devices="2")
    for rank in (0, 1):
        said = f"{rank} of 2 on {rank}: -m fsanet predict a b.png\n"
        assert (tmp_path / str(rank)).read_text() == said


ERROR = json.dumps({"message": {"message": "InputError: no x", "extraInfo": {"timestamp": "1"}}})


@pytest.mark.parametrize(
    ("script", "line"),
    [
        pytest.param(
            "[ $RANK = 0 ] || exit 3",
            r"process 1 failed with exit code 3.* --resume goes on",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "[ $RANK = 0 ] && sleep 20 || kill -9 $$",
            r"process 1 failed with exit code -9",
            marks=pytest.mark.slow,
        ),
        (f"echo '{ERROR}' > $TORCHELASTIC_ERROR_FILE; exit 2", r"^no x$"),
    ],
    ids=["fails", "killed, the other is stopped", "bad input"],
)
def test_a_process_that_fails_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    script: str,
    line: str,
) -> None:
    stub(monkeypatch, tmp_path, script)
    start = time.perf_counter()
    with pytest.raises(InputError, match=line):
        launch(["predict"], tmp_path / "out", accelerator="cpu", devices="2")
    assert time.perf_counter() - start < 15
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_folder_in_use_starts_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first process alone would be refused too late: the others would write meanwhile."""
    stub(monkeypatch, tmp_path, "touch started-$RANK")
    out = tmp_path / "out"
    with other_command(out), pytest.raises(InputError, match="out: is being written by process"):
        launch(["predict"], out, accelerator="cpu", devices="2")
    assert not list(tmp_path.glob("started-*"))
    assert launch(["predict"], out, accelerator="cpu", devices="2")
    assert len(list(tmp_path.glob("started-*"))) == 2
    assert not out.exists()  # nothing was written to it


@pytest.mark.slow
def test_folder_stays_locked_until_the_last_process_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = "[ $RANK = 0 ] && exit; touch waiting; while [ ! -e go ]; do sleep 0.05; done"
    stub(monkeypatch, tmp_path, script)
    out, found = tmp_path / "out", []

    def try_to_write() -> None:
        while not (tmp_path / "waiting").exists():
            time.sleep(0.02)
        time.sleep(0.5)  # the first process ends meanwhile
        with other_command(out) as said:
            found.append(said)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=try_to_write)
    thread.start()
    assert launch(["predict"], out, accelerator="cpu", devices="2")
    thread.join()
    assert len(found) == 1
    assert "is being written by process" in found[0]


@contextlib.contextmanager
def other_command(folder: Path) -> Iterator[str]:
    """Another process that holds the lock of a folder; yields what it says once it tried to."""
    program = (
        "import sys; from fsanet.files import lock_folder\n"
        "try:\n"
        "    with lock_folder(sys.argv[1], 'is being written'):\n"
        "        print('locked', flush=True); sys.stdin.readline()\n"
        "except Exception as error: print(error, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(launching.__file__).parents[2])}
    command = [PYTHON, "-c", program, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        yield process.stdout.readline()
        process.communicate("go on\n")


def test_an_interrupt_ends_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (
        "trap 'echo > stopped-$RANK; exit 130' INT TERM; touch $RANK; while :; do sleep 0.1; done"
    )
    stub(monkeypatch, tmp_path, script)

    def interrupt() -> None:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launch(["predict"], tmp_path / "out", accelerator="cpu", devices="2")
    finally:
        thread.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (tmp_path / "stopped-0").exists()
    assert (tmp_path / "stopped-1").exists()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes with pgrep")
def test_real_processes_one_killed_and_resumed_equal_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes of `fsanet predict`; one gets SIGKILL; a single process goes on."""
    torch.manual_seed(0)
    FsaNet(
        "test_resnet",
        num_classes=3,
        output_stride=16,
        head_channels=8,
        aux_channels=0,
        zero_init=False,
        encoder_options={"channels": [8, 8, 8, 8], "stem_width": 8},
    ).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number:03}.png")
    images, model, out = (str(tmp_path / name) for name in ("images", "model", "out"))
    # The second process takes the odd images: none of them is left behind by the other.
    monkeypatch.setenv("PYTHONPATH", str(Path(launching.__file__).parents[2]))

    def kill() -> None:
        while not Path(out, "005.json").exists():
            time.sleep(0.01)
        found = subprocess.run(
            ["pgrep", "-P", str(os.getpid()), "-f", "fsanet predict"],
            capture_output=True,
            text=True,
        ).stdout.split()
        for pid in found:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if b"RANK=1" in variables:
                os.kill(int(pid), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    arguments = ["predict", images, "--model", model, "--out", out, "--devices", "2"]
    with pytest.raises(InputError, match="process 1 failed with exit code -9"):
        launch([*arguments, "--accelerator", "cpu"], Path(out), accelerator="cpu", devices="2")
    thread.join()
    done = {path.stem for path in Path(out).glob("[0-9]*.json")}
    assert {"001", "003", "005"} <= done
    assert len(done) < 60
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        summary = predict_folder(model, images, out, resume=True, progress=False)
        predict_folder(model, images, tmp_path / "whole", progress=False)
    finally:
        torch.set_num_threads(threads)
    assert summary is not None
    assert summary["done_before"] == len(done)
    for path in Path(tmp_path, "whole").rglob("*.*"):
        if path.name != "summary.json":
            assert Path(out, path.name).read_bytes() == path.read_bytes()
