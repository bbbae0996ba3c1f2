"""Where metrics go: `metrics.csv`, which stays in order when a run is resumed, and loggers."""

from __future__ import annotations

import csv
import importlib.util
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fsanet.errors import InputError
from fsanet.files import write_text

__all__ = ["LoggerName", "MetricsFile", "check_logger", "make_loggers"]

LoggerName = Literal["tensorboard", "wandb", "mlflow", "none"]
_OPTIONAL = ("wandb", "mlflow")  # packages that have to be installed beside Lightning


class MetricsFile(Logger):
    """Writes every logged metric into one CSV file, which is replaced as a whole each time.

    Lightning's own CSV logger deletes the rows of the run that is resumed; this one keeps those
    before the step it resumes from. Columns: step, epoch, then the metrics by name; a cell is empty
    where a metric was not logged at that step.

    Args:
        path: the file.
        resume_step: optimiser steps done before this process started. Rows from this step on (they
            ran, but were lost with the interruption) are dropped.
        every_seconds: shortest time between two writes, except for the last.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, every_seconds: float = 5.0) -> None:
        super().__init__()
        self.path = path
        self.every_seconds = every_seconds
        self.rows: list[dict[str, Any]] = []
        self._written = 0.0
        if resume_step > 0 and path.is_file():
            self.rows = [row for row in _read(path) if int(row["step"]) < resume_step]

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the options are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of `step`."""
        step = 0 if step is None else step
        if not self.rows or int(self.rows[-1]["step"]) != step:
            self.rows.append({"step": step})
        self.rows[-1].update(metrics)
        if time.monotonic() - self._written > self.every_seconds:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if not self.rows:
            return
        names = set().union(*self.rows) - {"step", "epoch"}
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", "epoch", *sorted(names)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
        self._written = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        self.save()


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of the file, without empty cells."""
    rows = []
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines(), strict=True)
        if "step" not in (reader.fieldnames or ()):
            raise ValueError("it has no column 'step'")
        for row in reader:
            int(row["step"])
            numbers = {key: value for key, value in row.items() if value != ""}
            for value in numbers.values():
                float(value)
            rows.append(numbers)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: damaged ({error}); delete it to resume without the values logged so far"
        ) from error
    return rows


def check_logger(logger: Any) -> None:
    """Raise `InputError` for a logger of an unknown name, or whose package is not installed."""
    if isinstance(logger, Logger):
        return
    if not isinstance(logger, str):
        if not isinstance(logger, Sequence) or not all(isinstance(one, Logger) for one in logger):
            raise InputError(f"logger={logger!r}: give a name, a Lightning logger or several")
        return
    if logger not in get_args(LoggerName):
        raise InputError(f"logger={logger!r}: use one of {', '.join(get_args(LoggerName))}")
    if logger in _OPTIONAL and importlib.util.find_spec(logger) is None:
        raise InputError(f"logger={logger}: {logger} is not installed: pip install {logger}")


def make_loggers(logger: Any, out: Path, done: int) -> list[Logger]:
    """The Lightning loggers that a name stands for; loggers are taken as they are.

    Args:
        logger: see `fsanet.train.train`.
        out: run folder.
        done: optimiser steps done before this process started.
    """
    check_logger(logger)
    if logger == "tensorboard":
        return [
            TensorBoardLogger(
                out,
                name="tensorboard",
                version="",
                default_hp_metric=False,
                purge_step=done if done else None,
            )
        ]
    # Where results are sent is decided by the packages' own settings, such as WANDB_MODE.
    if logger == "wandb":
        return [WandbLogger(project="fsanet", name=out.name, save_dir=out)]
    if logger == "mlflow":
        import mlflow

        # Lightning's own default is a folder of files, which mlflow 3 refuses.
        where = mlflow.get_tracking_uri()
        return [MLFlowLogger(experiment_name="fsanet", run_name=out.name, tracking_uri=where)]
    if isinstance(logger, str):
        return []
    return [logger] if isinstance(logger, Logger) else [*logger]
