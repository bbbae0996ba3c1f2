"""Atomic writes, reading weights safely, and the record of what produced a result."""

import copy
import json
import os
import re
import stat
import subprocess

import pytest
import safetensors.torch
import torch
from torch import nn

import fsanet.files
from fsanet.attention import FrequencySelfAttention
from fsanet.errors import InputError
from fsanet.files import (
    environment,
    fingerprint,
    first_process,
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


def test_full_disk_is_an_input_error(tmp_path):
    def full(stream):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"new\.txt: cannot be written \(No space left"):
        write_whole(tmp_path / "new.txt", full)
    assert list(tmp_path.iterdir()) == []


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
        ("a.pth", b"", "damaged or not a file of weights"),
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
