"""Commands that are killed, run out of disk or meet another writer lose nothing.

What they leave is opened by the same command again; the final files have to be those of a command
that nothing disturbed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support.processes import alive_in_session

import fsanet
from campaign import material
from campaign.pool import PROCESSES, workers
from fsanet import FsaNet

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1200)]
OTHER_DISK = Path("/dev/shm")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@pytest.fixture(scope="module")
def run():
    with workers(max(PROCESSES, 2)) as run:
        yield run


class Place:
    """A folder in which commands run, and are killed."""

    def __init__(self, run, root: Path, folder: Path, tmp: str | None = None):
        self.run, self.root, self.folder, self.tmp = run, root, folder, tmp
        for name in ("home", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("blocks", "images", "cities", "net", "city", "recipe.yaml"):
            if not (folder / name).exists():
                (folder / name).symlink_to(root / name)

    def call(self, *command: str, after: float | None = None, number: int = signal.SIGKILL):
        """Exit code, lines on stderr, and seconds of a command, which gets a signal in time."""
        log = Path(tempfile.mkdtemp(dir=self.root))
        case = {
            "command": [os.fsencode(text).hex() for text in command],
            "folder": str(self.folder),
            "log": str(log),
            "seconds": 120,
            "memory": 3000,
            "stdin": "",
        }
        if self.tmp is not None:
            case["tmp"] = self.tmp
        if after is not None:
            case |= {"signal": int(number), "after": after}
        ended = self.run(case)
        assert ended["why"] in ("", "left processes"), ended
        said = (log / "stderr").read_text() if (log / "stderr").exists() else ""  # killed at once
        lines = [s for s in said.splitlines() if not s.startswith("fsanet: warning: ")]
        return ended["code"], lines, ended["seconds"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, networks, images and a recipe, for all tests."""
    folder = tmp_path_factory.mktemp("kills")
    material.write_blocks(folder / "blocks")
    rng = np.random.default_rng(0)
    for number in range(12):
        for place, name in (("images", f"{number:02}.png"), ("cities", _city(number))):
            pixels = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
            (folder / place).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / place / name)
    torch.manual_seed(0)
    FsaNet(**material.NETWORK, num_classes=3).save_pretrained(folder / "net")
    FsaNet(**material.NETWORK, num_classes=19).save_pretrained(folder / "city")
    recipe = material.RECIPE | {"steps": 12}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def _city(number: int) -> str:
    return f"berlin_{number:06}_000019_leftImg8bit.png"


# --- what is run, how it goes on, and what has to come of it


def train(resume: bool) -> list[str]:
    how = ["--resume"] if resume else ["--config", "recipe.yaml", "--overwrite"]
    return ["train", *how, "--out", "out"]


def predict(resume: bool) -> list[str]:
    return ["predict", "images", "--model", "net", "--device", "cpu", "--out", "out", "--resume"]


def export(resume: bool) -> list[str]:
    return [
        "predict",
        "cities",
        "--model",
        "city",
        "--device",
        "cpu",
        "--cityscapes-export",
        "out/x.zip",
    ]


def evaluate(resume: bool) -> list[str]:
    return ["eval", "net", *material.ON_DATA, "--out", "out", "--json", "out/all.json"]


def trained(out: Path) -> dict[str, object]:
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    with (out / "metrics.csv").open() as stream:
        losses = {r["step"]: r["train/loss"] for r in csv.DictReader(stream) if r.get("train/loss")}
    return {
        "best": _digest(load_file(out / "model" / "model.safetensors")),
        "last": _digest(state),
        "losses": losses,
    }


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def predicted(out: Path) -> dict[str, object]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


def exported(out: Path) -> dict[str, object]:
    with zipfile.ZipFile(out / "x.zip") as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def evaluated(out: Path) -> dict[str, object]:
    found = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".csv", ".md")}
    return found | {"scores": json.loads((out / "all.json").read_text())["miou"]}


COMMANDS = {
    "train": (train, trained),
    "predict": (predict, predicted),
    "export": (export, exported),
    "eval": (evaluate, evaluated),
}


@pytest.fixture(scope="module")
def undisturbed(run, root, tmp_path_factory):
    """For each command: its result, and how long it takes."""
    found = {}
    for name, (command, result) in COMMANDS.items():
        place = Place(run, root, tmp_path_factory.mktemp(name))
        code, lines, seconds = place.call(*command(False))
        assert (code, lines) == (0, []), (name, lines)
        found[name] = result(place.folder / "out"), seconds
    return found


def finish(place: Place, name: str) -> object:
    """Run the command again until it is done, and give its result."""
    command, result = COMMANDS[name]
    code, lines, _ = place.call(*command((place.folder / "out" / "config.yaml").exists()))
    if code == 2 and name == "train":  # killed before there was anything to resume
        assert len(lines) == 1
        assert "resume" in lines[0] or "checkpoint" in lines[0], lines
        code, lines, _ = place.call(*command(False))
    assert (code, lines) == (0, []), lines
    return result(place.folder / "out")


# --- kills

HIT: list[bool] = []  # whether each signal met a running command
FULL: list[bool] = []  # whether each small disk was too small
KILLS = [
    (name, number)
    for name, count in (("train", 16), ("predict", 10), ("export", 8), ("eval", 6))
    for number in range(count)
]


@pytest.mark.parametrize(("name", "number"), KILLS)
def test_killed_and_run_again(run, root, undisturbed, campaign, tmp_path, name, number):
    rng = Random(f"{campaign.seed} kill {name} {number}")
    expected, seconds = undisturbed[name]
    tmp = OTHER_DISK / f"fsanet-{os.getpid()}-{name}-{number}"
    elsewhere = number % 2 == 1 and OTHER_DISK.is_dir()
    if elsewhere:
        tmp.mkdir()
    place = Place(run, root, tmp_path, str(tmp) if elsewhere else None)
    try:
        for _ in range(rng.choice((1, 1, 2))):
            kind = SIGNALS[number // 2 % 2]
            resume = (tmp_path / "out" / "config.yaml").exists()
            after = rng.uniform(0, 1.1 * seconds)
            code, lines, _ = place.call(*COMMANDS[name][0](resume), after=after, number=kind)
            HIT.append(code in (128 + kind, -kind))
            if kind == signal.SIGTERM and code != 0:
                assert code in (2, 128 + signal.SIGTERM, -signal.SIGTERM), (code, lines)
                assert len(lines) == (code > 0), lines
                assert not [*tmp_path.rglob("*.partial")]
        assert finish(place, name) == expected
        assert not elsewhere or not [*tmp.iterdir()] or kind == signal.SIGKILL
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


PROGRAMS = [
    ("train", 9),
    ("train", 15),
    ("predict", 9),
    ("predict", 15),
    ("export", 9),
    ("eval", 15),
]


@pytest.mark.parametrize(("name", "kind"), PROGRAMS)
def test_program_of_its_own_is_killed(run, root, undisturbed, campaign, tmp_path, name, kind):
    """`python -m fsanet` from its first import on, its threads and workers with it."""
    rng = Random(f"{campaign.seed} program {name} {kind}")
    place = Place(run, root, tmp_path)
    command = [sys.executable, "-m", "fsanet", *COMMANDS[name][0](False)]
    source = str(Path(fsanet.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": f"{tmp_path}/home", "TMPDIR": f"{tmp_path}/home"}
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=said, stdout=said, start_new_session=True
        )
        # Half of them while it imports, the others once there is something to lose.
        seconds = rng.uniform(0.1, 5) if rng.random() < 0.5 else 60.0
        stop = time.monotonic() + seconds
        while (
            time.monotonic() < stop and process.poll() is None and not (tmp_path / "out").exists()
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(kind)
        code = process.wait(60)
    HIT.append(code in (128 + kind, -kind))
    assert code in (0, 128 + kind, -kind), (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    stop = time.monotonic() + 12  # what loads data may live on for ten seconds
    while (left := alive_in_session(process.pid)) and time.monotonic() < stop:
        time.sleep(0.05)
    assert not left
    if kind == signal.SIGTERM:
        assert not [*tmp_path.rglob("*.partial")]
    assert finish(place, name) == undisturbed[name][0]


# --- a disk that fills up


@contextmanager
def small_disk(folder: Path, kilobytes: int):
    """A file system of so many kilobytes at ``folder``."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("name", "number"), [(n, i) for n in COMMANDS for i in range(5)])
def test_disk_fills_up(run, root, undisturbed, campaign, tmp_path, name, number):
    rng = Random(f"{campaign.seed} disk {name} {number}")
    expected, _ = undisturbed[name]
    kilobytes = {"train": 700, "predict": 60, "export": 40, "eval": 100}[name]
    with small_disk(tmp_path / "disk", int(kilobytes * rng.uniform(0.05, 1.5)) + 8) as disk:
        place = Place(run, root, disk)
        code, lines, _ = place.call(*COMMANDS[name][0](False))
        FULL.append(code != 0)
        if code != 0:
            assert code == 2, (code, lines)
            assert len(lines) == 1, lines
            assert "space" in lines[0] or "written" in lines[0], lines
            assert not [*disk.rglob("*.partial")]
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert finish(place, name) == expected


# --- two at once


@pytest.mark.parametrize("name", ["train", "predict", "eval"])
@pytest.mark.parametrize("lead", [0.0, 0.5])
def test_two_writers(run, root, undisturbed, tmp_path, name, lead):
    expected, seconds = undisturbed[name]
    command, result = COMMANDS[name]
    place = Place(run, root, tmp_path)
    other = Place(run, root, tmp_path)

    def second():
        time.sleep(lead * seconds)
        return other.call(*command((tmp_path / "out" / "config.yaml").exists()))

    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(place.call, *command(False)), threads.submit(second)]
        codes = [(call.result()[0], call.result()[1]) for call in found]
    assert 0 in [code for code, _ in codes], codes
    for code, lines in codes:
        assert code == 0 or (code == 2 and len(lines) == 1 and "out" in lines[0]), codes
    assert result(tmp_path / "out") == expected


def test_kills_and_full_disks_were_met(capsys):
    """After all others: the moments and sizes were such that something happened."""
    with capsys.disabled():
        print(f"\n{sum(HIT)} of {len(HIT)} signals met a running command, ", end="")
        print(f"{sum(FULL)} of {len(FULL)} disks filled up")
    assert sum(HIT) >= len(HIT) // 2
    assert sum(FULL) >= len(FULL) // 3
