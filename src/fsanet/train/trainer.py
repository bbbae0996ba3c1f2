"""Lightning's trainer, set up for this library, and what has to fit before it starts."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import nn

from fsanet.errors import InputError
from fsanet.files import first_process
from fsanet.train.callbacks import EpochLines

if TYPE_CHECKING:
    from fsanet.data.batches import InstanceData, SegmentationData


def make_trainer(out: Path, **options: Any) -> lightning.Trainer:
    """A trainer that leaves sampling to the data module and says nothing it is not asked."""
    has_bar = any(isinstance(callback, RichProgressBar) for callback in options["callbacks"])
    try:
        return lightning.Trainer(
            default_root_dir=out,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=has_bar,
            **options,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"trainer options: {' '.join(str(error).split())}") from error


def interruptible(trainer: lightning.Trainer, run: Callable[[], object]) -> None:
    """Runs, and lets Ctrl-C out as KeyboardInterrupt; Lightning turns it into an exit code 1."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        run()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt) or trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored


def console(progress: bool, steps: int) -> list[Callback]:
    if not progress:
        return []
    return [RichProgressBar(refresh_rate=5)] if sys.stdout.isatty() else [EpochLines(steps)]


def synchronises(wanted: bool, accelerator: str) -> bool:
    return wanted and accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def check_classes(model: nn.Module, data: SegmentationData | InstanceData) -> None:
    """Raises `InputError` unless model and data have the same number of classes."""
    count = getattr(model, "num_classes", None)
    if count is not None and count != data.num_classes:
        raise InputError(
            f"the model has {count} classes and the data set {data.num_classes}: they must agree"
        )
    names = tuple(getattr(model, "classes", ()) or ())
    if names and names != tuple(data.classes):
        pairs = zip(names, data.classes, strict=True)
        theirs = next((pair for pair in pairs if pair[0] != pair[1]), None)
        if theirs is not None:
            warnings.warn(
                f"class names differ: the model says {theirs[0]!r} where the data says "
                f"{theirs[1]!r}",
                stacklevel=2,
            )


def check_shares(data: SegmentationData | InstanceData, split: str, processes: int) -> None:
    """Every process needs an image: one without would leave the others waiting."""
    count = len(data.dataset(split))
    if 0 < count < processes:
        raise InputError(
            f"the {split} split has {count} images for {processes} processes; use fewer devices"
        )


def check_batch(
    data: SegmentationData | InstanceData, processes: int, wanted: int | None, lr: float
) -> None:
    """Warns if an optimiser step sees another number of images than its rate was chosen for."""
    images = data.batch_size * data.accumulate * processes
    if wanted is None or images == wanted or not first_process():
        return
    share, rest = divmod(wanted, data.accumulate * processes)
    if rest == 0:
        keep = f"--data.init_args.batch_size {share}"
    elif wanted % processes == 0:
        keep = f"--data.init_args.batch_size {wanted // processes} --data.init_args.accumulate 1"
    else:
        keep = f"a number of processes that divides {wanted}"
    each = f"{data.batch_size} a process, {data.accumulate} accumulated, {processes} processes"
    warnings.warn(
        f"a step takes {images} images ({each}), but lr={lr:g} was chosen for {wanted}; keep them "
        f"with {keep}, or choose another rate (in proportion, for SGD: --task.lr "
        f"{lr * images / wanted:g}), with --global_batch {images} and {wanted / images:g} times "
        "the steps",
        UserWarning,
        stacklevel=1,  # this file is one of ours, whoever calls
    )
