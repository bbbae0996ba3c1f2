import csv
import importlib.util
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from fsanet.errors import InputError
from fsanet.train.logs import MetricsFile, check_logger, make_loggers


def read(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_rows_merge_by_step_and_columns_grow(tmp_path):
    log = MetricsFile(tmp_path / "m.csv", every_seconds=0.0)
    log.log_metrics({"loss": 2.0, "epoch": 0}, step=0)
    log.log_metrics({"loss": 1.0, "epoch": 0}, step=4)
    log.log_metrics({"miou": 0.5, "epoch": 0}, step=4)
    assert read(tmp_path / "m.csv") == [
        {"step": "0", "epoch": "0", "loss": "2.0", "miou": ""},
        {"step": "4", "epoch": "0", "loss": "1.0", "miou": "0.5"},
    ]


def test_resuming_keeps_what_came_before_only(tmp_path):
    first = MetricsFile(tmp_path / "m.csv")
    for step in range(6):
        first.log_metrics({"loss": float(step)}, step=step)
    first.finalize("failed")
    again = MetricsFile(tmp_path / "m.csv", resume_step=4)
    again.log_metrics({"loss": 40.0}, step=4)
    again.finalize("success")
    assert [(row["step"], row["loss"]) for row in read(tmp_path / "m.csv")] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "3.0"),
        ("4", "40.0"),
    ]


def test_nothing_logged_writes_nothing(tmp_path):
    MetricsFile(tmp_path / "m.csv").finalize("success")
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"step,epoch,train/loss\n0,0,0.5\n\xff\xfe\x00\n",
        b"step,epoch\n0,0\n\0\0\0,\0\n",
        b"\0" * 100,
        b"garbage\n",
        b"",
        b"epoch,train/loss\n0,0.5\n",
        b"step,epoch\nfour,0\n",
        b"step,epoch\n0,0,0.5,7\n",
        b"step,epoch\n0\n",
        b"step,epoch,train/loss\n0,0,0.5\n1,0,half\n",
    ],
)
def test_damaged_file_is_not_continued(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv: damaged .*delete it to resume without"):
        MetricsFile(path, resume_step=5)
    assert path.read_bytes() == content


# ---- loggers


def test_loggers_by_name_or_as_they_are(tmp_path):
    own = CSVLogger(tmp_path)
    assert [type(one) for one in make_loggers("tensorboard", tmp_path, 0)] == [TensorBoardLogger]
    assert make_loggers("none", tmp_path, 0) == []
    assert make_loggers(own, tmp_path, 0) == [own]
    assert make_loggers([own, own], tmp_path, 0) == [own, own]


def test_mlflow_writes_where_mlflow_says(tmp_path, monkeypatch):
    """Not into Lightning's folder of files, which mlflow 3 refuses."""
    mlflow = SimpleNamespace(get_tracking_uri=lambda: "sqlite:///mine.db", __spec__=object())
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr("fsanet.train.logs.MLFlowLogger", lambda **options: options)
    (options,) = make_loggers("mlflow", tmp_path / "run", 0)
    assert (options["tracking_uri"], options["run_name"]) == ("sqlite:///mine.db", "run")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_one_line(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"{name} is not installed: pip install {name}"):
        check_logger(name)


@pytest.mark.parametrize("logger", ["wandbs", 3, ["tensorboard"]])
def test_no_logger(logger):
    with pytest.raises(InputError, match="logger="):
        check_logger(logger)
