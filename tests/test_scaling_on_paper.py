"""benchmarks/scaling_on_paper.py: its arithmetic, on round numbers."""

import argparse
import sys

import pytest
from support.scripts import load_benchmark


@pytest.fixture(scope="module")
def script():
    return load_benchmark("scaling_on_paper")


def inputs(script, what, **changed):
    values = {name: option[0] for name, option in script.OPTIONS[what].items()}
    round_numbers = {"tflops": 2.0, "utilisation": 0.5, "cores": 4.0, "disk": 1.0}
    return argparse.Namespace(what=what, **values | round_numbers | changed)


def test_gradients_slow_a_step_down_once_they_take_longer_than_the_backward_pass(script):
    given = inputs(script, "train", global_batch=8.0, overhead_ms=500.0, cpu_ms=100.0, read=10.0)
    flops, parameters = 3e12, 1e9  # 24 s of one GPU a step; 4 GB
    fast = script.training_load(given, 8, 7.0, flops=flops, parameters=parameters)
    # 3 s of compute on each GPU, of which 2 s hide the 1 s of gradients
    assert fast.rate == pytest.approx(8 / 3.5)
    assert fast.slowest == "GPUs"
    slow = script.training_load(given, 8, 1.0, flops=flops, parameters=parameters)
    assert slow.rate == pytest.approx(8 / (1 + 7 + 0.5))
    assert slow.slowest == "gradients"
    assert slow.cores == pytest.approx(0.1 / 32)
    assert slow.files == pytest.approx(0.01)
    alone = script.training_load(given, 1, 1.0, flops=flops, parameters=parameters)
    assert (alone.slowest, alone.rate) == ("GPUs", pytest.approx(8 / 24.5))


@pytest.mark.parametrize(
    ("changed", "slowest", "rate"),
    [
        ({}, "GPUs", 64),  # of 1 TFLOP an image, 1 TFLOP/s a GPU
        ({"cpu_ms": 8000.0}, "cores", 32),
        ({"written": 90.0}, "files", 10),  # 10 + 90 MB at 1 GB/s
        ({"operations": 120.0}, "files", 20),  # 6 for each image
    ],
)
def test_what_limits_a_prediction(script, changed, slowest, rate):
    given = inputs(script, "predict", **{"cpu_ms": 1.0, "read": 10.0, "written": 1.0} | changed)
    load = script.prediction_load(given, 64, flops=1e12)
    assert (load.slowest, load.rate) == (slowest, pytest.approx(rate))


def test_tables_say_where_each_number_is_from(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "training_flops", lambda model: 10**12)
    monkeypatch.setattr(sys, "argv", ["x", "train", "--tflops", "2", "--gpus", "1", "8"])
    assert script.main() == 0
    printed = capsys.readouterr().out
    assert "| peak TFLOP/s of a GPU (A100, bfloat16) | 2 | given |" in printed
    assert "| fraction of it that the network reaches | 0.35 | assumed |" in printed
    assert "| parameters, M | 71.3 | counted |" in printed
    assert printed.count("\n| 8 | ") == 3  # one for each kind of link
    for wrong in (
        ["predict", "--written", "1"],
        ["train", "--disk", "0"],
        ["train", "--gpus", "0"],
    ):
        monkeypatch.setattr(sys, "argv", ["x", *wrong])
        with pytest.raises(SystemExit, match="2"):
            script.main()
