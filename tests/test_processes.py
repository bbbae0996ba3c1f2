"""benchmarks/processes.py: which commands run in which order, and what becomes of their rates."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.scripts import load_benchmark


@pytest.fixture
def script(monkeypatch):
    return load_benchmark("processes")


@pytest.fixture
def commands(script, monkeypatch):
    """The commands that were run; one on two cores is 1.5 times as fast, two processes twice."""
    done = []

    def run(arguments, threads):
        values = dict(one.removeprefix("--").split("=") for one in arguments if "=" in one)
        done.append((arguments[0], int(values["devices"]), threads, values.get("data.batch_size")))
        rate = 10 * int(values["devices"]) * (1.5 if threads == 2 else 1)
        out = Path(values["out"])
        out.mkdir(exist_ok=True)
        if arguments[0] == "train":
            with (out / "metrics.csv").open("w", newline="") as stream:
                rows = csv.writer(stream)
                rows.writerows([["step", "train/images_per_second"], [3, 1], [4, rate], [4, ""]])
        else:
            assert arguments[1] == "photos"
            assert values["model"] == str(out.parent / "run" / "model")
            (out / "summary.json").write_text(json.dumps({"images_per_second": 2 * rate}))

    monkeypatch.setattr(script, "run", run)
    return done


def test_commands_take_turns_and_share_the_batch(script, commands, monkeypatch, tmp_path, capsys):
    files = [f"--json={tmp_path / 'p.json'}", f"--figure={tmp_path / 'p.png'}"]
    own = ["--images=photos", "--rounds=2", *files, "--config=camvid_full"]
    monkeypatch.setattr(sys, "argv", ["processes.py", *own])
    assert script.main() == 0
    assert commands[:6] == [
        *(("train", 1, 1, "8"), ("predict", 1, 1, None)),
        *(("train", 2, 1, "4"), ("predict", 2, 1, None)),
        *(("train", 1, 2, "8"), ("predict", 1, 2, None)),
    ]
    assert [one[1:3] for one in commands[6::2]] == [(2, 1), (1, 2), (1, 1)]  # the next one first
    printed = capsys.readouterr().out
    assert (
        "| training, 2 processes, threads 1 | 20.0 (20.0 - 20.0) | 2.00 (2.00 - 2.00) | 2 |"
        in printed
    )
    assert (
        "| prediction, 1 process, threads 2 | 30.0 (30.0 - 30.0) | 1.50 (1.50 - 1.50) | 2 |"
        in printed
    )
    found = json.loads((tmp_path / "p.json").read_text())["images_per_second"]
    assert found["prediction"]["2 processes, threads 1"] == {"0": 40.0, "1": 40.0}
    with Image.open(io.BytesIO((tmp_path / "p.png").read_bytes())) as image:
        assert image.size == (1800, 760)
    monkeypatch.setattr(sys, "argv", ["processes.py", *own, "--processes", "3"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "cannot share 8 images a step evenly" in capsys.readouterr().err


def test_a_command_that_fails_is_one_line(script, monkeypatch, capsys):
    own = ["--images=x", "--config=camvid_full", "--data.root=/no/such/folder"]
    monkeypatch.setattr(script, "subprocess", Failed)
    monkeypatch.setattr(sys, "argv", ["processes.py", *own])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert capsys.readouterr().err.endswith("error: fsanet train: no such folder\n")


class Failed:
    """Takes the place of the module subprocess."""

    returncode = 2
    stderr = "warning\nno such folder\n"

    @classmethod
    def run(cls, *arguments, **options):
        return cls
