"""Trainings that are killed at any moment, or whose disk fills up, end with equal results."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import CLASSES, TinyData, TinyNet

from fsanet.errors import InputError
from fsanet.signals import Interrupted, handled
from fsanet.train import SemanticSegmentation, train

STEPS = 24


def train_here(out, **options):
    """Start a run, or resume the one that is there."""
    torch.manual_seed(0)
    task = SemanticSegmentation(TinyNet(), classes=CLASSES, lr=0.05)
    saved = any(Path(out).glob("checkpoints/last*.ckpt"))
    options |= {"resume": True} if saved else {"overwrite": True}
    options |= {"steps": STEPS, "accelerator": "cpu", "log_every": 1, "progress": False}
    return train(task, TinyData(), out=out, **options)


def train_in_a_process(out, log, environment=()):
    """Process id; a fork, because it takes seconds to import everything again."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(environment)
        errors = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(errors, 2)
        with handled(to_the_end=True):
            train_here(out)
        code = 0
    except InputError as error:
        os.write(2, f"one line: {error}".encode())
        code = 2
    except Interrupted as stop:
        code = 128 + stop.number
    finally:
        os._exit(code)


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def results(out):
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    return last["state_dict"] | load_file(out / "model" / "model.safetensors")


def assert_equal_results(out, expected):
    found = results(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results, and the time that a run takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.perf_counter()
    assert wait(train_in_a_process(folder / "run", folder / "log")) == 0
    return results(folder / "run"), time.perf_counter() - start


KILLS = [(signal.SIGKILL, 0), (signal.SIGTERM, 1)]
MORE_KILLS = [
    (number, seed) for number in (signal.SIGKILL, signal.SIGTERM) for seed in range(2, 20)
]


@pytest.mark.parametrize(
    ("number", "seed"), [*KILLS, *(pytest.param(*k, marks=pytest.mark.slow) for k in MORE_KILLS)]
)
def test_killed_training_resumes_to_equal_results(tmp_path, undisturbed, number, seed):
    expected, seconds = undisturbed
    environment = {"TMPDIR": "/dev/shm"} if seed % 2 else {}  # another file system
    draw = random.Random(seed)
    for _ in range(2):
        process = train_in_a_process(tmp_path / "run", tmp_path / "log", environment)
        time.sleep(draw.uniform(0.2, 0.9) * seconds)
        os.kill(process, number)
        code = wait(process)
        assert code in ((0, -9) if number == signal.SIGKILL else (0, 143))
        if number == signal.SIGTERM:
            assert not [*tmp_path.rglob("*.partial"), *tmp_path.rglob(".lock")]
    assert wait(train_in_a_process(tmp_path / "run", tmp_path / "log")) == 0
    assert_equal_results(tmp_path / "run", expected)
    assert not [*tmp_path.rglob("*.partial"), *tmp_path.rglob(".lock")]


@contextmanager
def small_disk(folder, kilobytes):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


MORE_SIZES = [4, 24, 40, 48, 56, 64, 80, 100]


@pytest.mark.parametrize(
    "kilobytes", [12, 72, *(pytest.param(size, marks=pytest.mark.slow) for size in MORE_SIZES)]
)
def test_disk_fills_up(tmp_path, undisturbed, kilobytes):
    disk = tmp_path / "disk"
    with small_disk(disk, kilobytes):
        code = wait(train_in_a_process(disk / "run", tmp_path / "log"))
        assert code == 2 or kilobytes > 24
        if code:
            assert code == 2
            line = (tmp_path / "log").read_text().split("one line: ")[-1]
            assert "cannot be written (No space left on device)" in line
            assert not [*disk.rglob("*.partial")]
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert wait(train_in_a_process(disk / "run", tmp_path / "log")) == 0
        assert_equal_results(disk / "run", undisturbed[0])


def test_second_training_is_refused_while_the_first_is_alive(tmp_path):
    out = tmp_path / "run"
    process = train_in_a_process(out, tmp_path / "log")
    try:
        while not (out / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.01)
        os.kill(process, signal.SIGSTOP)
        before = (out / "checkpoints" / "last.ckpt").read_bytes()
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=rf"is being trained by process {process} on"):
                train_here(out, **options)
        assert (out / "checkpoints" / "last.ckpt").read_bytes() == before
    finally:
        os.kill(process, signal.SIGKILL)
        wait(process)
    assert train_here(out).steps == STEPS


TWO_PROCESSES = """
import sys
sys.path[:0] = {path!r}
from support.tiny import train_tiny
from fsanet.signals import Interrupted
try:
    resume = "resume" in sys.argv
    train_tiny(sys.argv[1], steps=100, devices=2, strategy="ddp", resume=resume)
except Interrupted as stop:
    sys.exit(128 + stop.number)
"""


@pytest.mark.slow
def test_two_processes_end_together_and_resume_to_equal_results(tmp_path):
    """Only the first gets the signal; Lightning has started the second."""
    program = tmp_path / "program.py"
    program.write_text(TWO_PROCESSES.format(path=sys.path))

    def start(name, *options):
        command = [sys.executable, str(program), str(tmp_path / name), *options]
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})

    undisturbed = start("undisturbed")
    process = start("run")
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < last["global_step"] < 100
    assert start("run", "resume").wait(timeout=300) == 0
    assert undisturbed.wait(timeout=300) == 0
    assert_equal_results(tmp_path / "run", results(tmp_path / "undisturbed"))
