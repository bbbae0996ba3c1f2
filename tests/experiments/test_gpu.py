"""The parts of experiments/gpu.sh: their command lines parse, and what is done is not repeated."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fsanet.cli.main import main

ROOT = Path(__file__).parents[2]


class Reached(Exception):
    """The command line was accepted."""


def script(*arguments, **options):
    return subprocess.run(
        ["bash", "experiments/gpu.sh", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def commands():
    lines = script("--dry-run").stdout.splitlines()
    return [shlex.split(line.replace("cuda", "cpu")) for line in lines]


def reach(*_, **__):
    raise Reached


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_each_part_parses(monkeypatch, tmp_path, command):
    command = command[2:] if command[:2] == ["env", "FSANET_TRITON=1"] else command
    assert command[0] == "python"
    if command[1:3] == ["-m", "pytest"]:
        assert command[3:] == ["-m", "gpu", "-n", "0"]
        return
    if "--json" in command:
        command[command.index("--json") + 1] = str(tmp_path / "found.json")
    if command[1:3] == ["-m", "fsanet"]:
        monkeypatch.setattr("fsanet.bench.compare_layers.compare_layers", reach)
        monkeypatch.setattr("fsanet.bench.compare_networks.compare_networks", reach)
        with pytest.raises(Reached):
            main(["--debug", *command[3:]])
        return
    file = ROOT / command[1]
    if file.name == "peers.py":
        pytest.importorskip("segmentation_models_pytorch")
        if not file.is_file():
            pytest.skip("no comparison with other networks in this tree")
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.syspath_prepend(ROOT / "experiments")
    found = runpy.run_path(str(file))
    if "COMMANDS" in found:
        import common

        for name in ("cost", "train"):
            monkeypatch.setitem(found["COMMANDS"], name, (reach, found["COMMANDS"][name][1]))
        with pytest.raises(Reached):
            common.main("peers", found["COMMANDS"])
    else:
        found["main"].__globals__["measure"] = reach
        with pytest.raises(Reached):
            found["main"]()


def test_parts_are_chosen_by_name_and_wrong_options_refused():
    lines = script("--dry-run", "bfloat16").stdout.splitlines()
    assert len(lines) == 5
    assert all("bfloat16" in line for line in lines)
    wrong = script("--wet-run")
    assert wrong.returncode == 2
    assert "--wet-run: use --dry-run or --smoke" in wrong.stderr
