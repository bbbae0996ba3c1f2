"""Atomic writes, reading weights safely, and the record of what produced a result."""

import copy
import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from random import Random

import pytest
import safetensors.torch
import torch
from PIL import Image
from support.disk import files_limited_to
from torch import nn

import fsanet.files
from fsanet.attention import FrequencySelfAttention
from fsanet.errors import InputError
from fsanet.files import (
    check_sockets,
    check_writable,
    check_writable_file,
    environment,
    fingerprint,
    first_process,
    lock_folder,
    model_summary,
    read_checkpoint,
    read_weights,
    write_json,
    write_text,
    write_whole,
)

# --- writing ----------------------------------------------------------------------------


def test_content_and_folders(tmp_path):
    path = write_text(tmp_path / "a/b/c.txt", "grüß\n")
    assert path.read_bytes() == "grüß\n".encode()
    assert json.loads(write_json(tmp_path / "v.json", {"x": [1, None]}).read_text()) == {
        "x": [1, None]
    }
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["c.txt"]
    odd = write_text(tmp_path / "odd.txt", "a\udcff.png")  # a name that is no UTF-8
    assert odd.read_text() == "a\\udcff.png"


def test_interrupted_write_keeps_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "kept.txt", "old")

    def fails(stream):
        stream.write(b"half of the n")
        stream.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fails)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new.txt", fails)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda stream: stream.write(b"0" * 20_000),  # fails when the buffer is flushed
        lambda stream: [stream.write(b"0" * 4096) for _ in range(5)],
        lambda stream: torch.save({"x": torch.zeros(5000)}, stream),
        partial(Image.effect_noise((200, 200), 50).save, format="PNG"),
    ],
    ids=["once", "often", "torch", "image"],
)
def test_full_disk_leaves_the_old_file(tmp_path, write):
    path = write_text(tmp_path / "kept", "old")
    refused = pytest.raises(InputError, match=r"kept: cannot be written \(File too large\)")
    with files_limited_to(10_000), refused:
        write_whole(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_at_the_last_moment(tmp_path, monkeypatch, call):
    path = write_text(tmp_path / "kept", "old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"kept: cannot be written \(No space left on device\)"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    def reads(stream):
        try:
            (tmp_path / "missing").read_text()
        except OSError as error:
            raise InputError("missing: cannot be read") from error

    with pytest.raises(InputError, match="missing: cannot be read"):
        write_whole(tmp_path / "new", reads)


def test_replaced_file_can_be_kept(tmp_path):
    path = tmp_path / "a"
    for text in "123":
        write_whole(path, lambda stream, text=text: stream.write(text.encode()), keep=f"{path}-old")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "3", "a-old": "2"}


def test_links_stay(tmp_path):
    (tmp_path / "far").mkdir()
    for name, target in {"link": "far/file", "loop": "loop"}.items():
        (tmp_path / name).symlink_to(target)
    for text in ("first", "second"):
        assert write_text(tmp_path / "link", text).read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "file").read_text() == "second"
    with pytest.raises(InputError, match="loop: cannot be written"):
        write_text(tmp_path / "loop", "")


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("pipe", "folder", "null", "socket", "/dev/null"):
            with pytest.raises(InputError, match=rf"{name}: .*\(it is a .*give the path of a file"):
                write_text(tmp_path / name, "")
            with pytest.raises(InputError, match="give the path of a file"):
                check_writable_file(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "null", "pipe", "socket"]


OTHER_PROCESS = """
import sys
from fsanet.files import lock_folder, write_whole

def write(stream):
    stream.write(b"half")
    print("writing", flush=True)
    sys.stdin.readline()

def main(folder):
    with lock_folder(folder, "is in use"):
        write_whole(folder + "/file", write)
main(sys.argv[1])
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the lock of the folder and is in the middle of writing a file."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_folder_in_use(tmp_path, other_process):
    message = rf"{tmp_path.name}: is in use by process {other_process.pid} on .*; wait for its end"
    with pytest.raises(InputError, match=message), lock_folder(tmp_path, "is in use"):
        pass
    write_text(tmp_path / "mine", "")  # does not take what is being written for an old file
    assert len(list(tmp_path.glob(".file.*.partial"))) == 1
    other_process.communicate("go on\n", timeout=60)
    with lock_folder(tmp_path, "is in use"):
        assert (tmp_path / "file").read_text() == "half"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]


def test_a_lock_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    message = r"\.lock: cannot be written \(it is a pipe\)"
    with pytest.raises(InputError, match=message), lock_folder(tmp_path, "is in use"):
        pass


def test_a_temporary_folder_whose_path_is_too_long_for_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + 74 * "x")
    check_sockets()
    monkeypatch.setattr(tempfile, "tempdir", "/" + 75 * "x")
    with pytest.raises(InputError, match="set TMPDIR to a folder"):
        check_sockets()


def test_killed_process_leaves_nothing_in_the_way(tmp_path, other_process):
    other_process.kill()
    other_process.wait(timeout=60)
    (tmp_path / ".mine.partial").touch()
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    with lock_folder(tmp_path, "is in use"):
        write_text(tmp_path / "file", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.partial", "file"]


def test_folders_are_checked_before_the_work(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable_file(tmp_path / "a" / "b.txt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("nothing")
    for name in ("file", "file/a/b", "nowhere", "nowhere/a", "/proc/run"):
        with pytest.raises(InputError, match=rf"{name}: cannot be written \(.*\); give another"):
            check_writable(tmp_path / name)


def test_unwritable_paths_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x\.txt: cannot be written"):
        write_text(tmp_path / "file/x.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_text(tmp_path / "folder", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# --- reading weights --------------------------------------------------------------------

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(3)}


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (WEIGHTS, {}),
        ({f"module.{name}": value for name, value in WEIGHTS.items()}, {}),
        ({"state_dict": WEIGHTS, "global_step": 7}, {"global_step": 7}),
        ({"model": WEIGHTS, "meta": {"CLASSES": ["sky"]}}, {"meta": {"CLASSES": ["sky"]}}),
    ],
    ids=["state_dict", "DataParallel", "training", "published"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_of_a_checkpoint(tmp_path, content, rest, zipped):
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    weights, found = read_checkpoint(tmp_path / "a.pth")
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())
    assert found == rest


def test_safetensors(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "a.safetensors")
    weights = read_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in WEIGHTS.items())


def test_code_in_a_file_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"state_dict": WEIGHTS, "hook": Attack()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: holds \w+\.mkdir besides its weights.*refused"):
        read_weights(tmp_path / "a.pth")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", None, "no such file"),
        ("a.pth", b"", "the file is empty"),
        ("a.pth", b"not a zip file at all", "damaged or not a file of weights"),
        ("a.safetensors", b"not safetensors at all", "damaged or not a file of weights"),
        ("a.pth", [torch.zeros(1)], "holds a list instead of a state_dict"),
        ("a.pth", {"epoch": 3}, r"not a state_dict \(epoch is not a tensor\)"),
        ("a.pth", {0: torch.zeros(1)}, r"not a state_dict"),
        ("a.pth", {"model": {}}, r"not a state_dict \(it is empty\)"),
    ],
)
def test_files_that_are_not_weights(tmp_path, name, content, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=f"{re.escape(name)}: {message}"):
        read_weights(tmp_path / name)


def test_truncated_checkpoint(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.pth: damaged"):
        read_weights(tmp_path / "a.pth")


def test_archive_that_unpacks_to_more_than_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 50_000_000)
        archive.writestr("a/version", b"3")
    with pytest.raises(InputError, match=r"a\.pth: damaged.*declare 50000001 bytes, more than"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**9),  # a few bytes that stand for gigabytes
        torch.empty(10**9, device="meta"),
        torch.zeros(4, 4).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
    ],
    ids=["expanded", "meta", "sparse", "quantized"],
)
def test_tensors_without_their_values(tmp_path, value):
    torch.save({"a": torch.zeros(1), "b\n": value}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: (b\\n is not a dense tensor|damaged)"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bytes_are_no_traceback(tmp_path, seed, zipped):
    """Either the file is refused in one line, or what is read are tensors."""
    torch.save(
        {"state_dict": WEIGHTS, "k": 3}, tmp_path / "a", _use_new_zipfile_serialization=zipped
    )
    content = bytearray((tmp_path / "a").read_bytes())
    random = Random(seed)
    for _ in range(3):
        content[random.randrange(min(len(content), 400))] = random.randrange(256)
    (tmp_path / "a").write_bytes(content)
    message = ""
    try:
        weights = read_weights(tmp_path / "a")
    except InputError as error:
        weights, message = {}, str(error)
    assert "\n" not in message
    assert bool(weights) != bool(message)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    for path in (tmp_path, tmp_path / "a.pth", "/dev/zero"):
        with pytest.raises(InputError, match="not a file; give the path of a checkpoint"):
            read_weights(path)


# --- fingerprint ------------------------------------------------------------------------


class Pinned(nn.Module):
    classes = ("sky", "road")
    palette = ((0, 0, 255), (255, 0, 0))
    mean = (0.5, 0.25)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("count", torch.tensor(7))


def test_fingerprints_in_existing_results_stay_valid():
    assert fingerprint(Pinned()) == "f73f28d574bb50c0"
    assert fingerprint(Pinned(), weights_only=True) == "eb2b667f9c7c"


class Net(nn.Module):
    classes = ("sky", "road")
    mean = (0.5, 0.5, 0.5)

    def __init__(self, k=4):
        super().__init__()
        torch.manual_seed(0)
        self.attention = FrequencySelfAttention(8, k=k)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))


def nudge(net):
    with torch.no_grad():
        net.norm.weight[3] = torch.nextafter(net.norm.weight[3], torch.tensor(2.0))


def other_k(net):
    net.attention = Net(k=5).attention


@pytest.mark.parametrize(
    ("change", "changes_weights"),
    [
        (nudge, True),
        (lambda net: net.norm.running_mean.fill_(1e-30), True),
        (lambda net: setattr(net, "scale", nn.Parameter(net.scale.float())), True),
        (other_k, False),
        (lambda net: setattr(net, "classes", ("sky", "Road")), False),
        (lambda net: setattr(net, "mean", (0.5, 0.5, 0.25)), False),
        (lambda net: setattr(net, "_hub_mixin_config", {"align_corners": True}), False),
    ],
    ids=["last bit of a weight", "buffer", "dtype", "k alone", "class", "mean", "option"],
)
def test_any_difference_changes_the_fingerprint(change, changes_weights):
    net = Net()
    change(net)
    assert fingerprint(net) != fingerprint(Net())
    same = fingerprint(net, weights_only=True) == fingerprint(Net(), weights_only=True)
    assert same != changes_weights


def test_equal_networks_have_equal_fingerprints():
    net = Net()
    expected = fingerprint(net)
    assert fingerprint(copy.deepcopy(net).eval()) == fingerprint(Net().train()) == expected
    assert model_summary(net) == {
        "name": "Net",
        "parameters": sum(p.numel() for p in net.parameters()),
        "fingerprint": expected,
    }


# --- machine and versions ---------------------------------------------------------------


def test_environment_names_device_and_versions():
    found = environment()
    assert found["torch"] == torch.__version__
    assert re.fullmatch(r"CPU \(.+, \d+ cores\)", found["device"])
    assert all(isinstance(value, str) and value for value in found.values())


def test_commit_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    here = tmp_path / "files.py"
    here.write_text("1")
    monkeypatch.setattr(fsanet.files, "__file__", str(here))
    assert "commit" not in environment()
    git("init", "-q")
    assert "commit" not in environment()  # inside a repository that does not track it
    git("add", "files.py")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert environment()["commit"] == head[:12]
    here.write_text("2")
    assert environment()["commit"] == head[:12] + "+changes"
    monkeypatch.setenv("PATH", "")
    assert "commit" not in environment()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun started by srun
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),  # Lightning
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"GROUP_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, True),  # srun
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, True),  # sbatch without srun
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
    ],
)
def test_first_process(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first
