"""What happens around the steps of a training run: seeds, exact end, speed, console."""

from __future__ import annotations

import functools
import math
import os
import random
import time
import warnings
from collections import deque
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn

from fsanet.data.batches import Loader
from fsanet.files import first_process
from fsanet.progress import LINE_EVERY, ConsoleProgress

__all__ = [
    "DepthwiseInFloat32",
    "EpochLines",
    "EvaluationProgress",
    "SeedEachBatch",
    "StopAtStep",
    "SynchronisedBatchNorm",
    "Throughput",
    "depthwise_in_float32",
]


class SeedEachBatch(Callback):
    """Makes everything random in a step (dropout above all) depend on seed, batch and rank alone.

    A resumed run therefore continues like one that was never interrupted, whatever else draws
    random numbers (loaders do when they start, which happens at other times after a resume).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        key = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        words = np.random.SeedSequence(key).generate_state(4)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words[2])  # noqa: NPY002
        random.seed(int(words[3]))


class StopAtStep(Callback):
    """Ends training at an exact optimiser step, even within an epoch, with a last validation."""

    def __init__(self, steps: int, *, val_every: int) -> None:
        self.steps = steps
        self.val_every = val_every

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        last = (trainer.current_epoch + 1) * steps >= self.steps
        trainer.check_val_every_n_epoch = 1 if last else self.val_every

    on_train_start = on_train_epoch_start  # a run that resumes within an epoch does not start it

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


#: Fraction of the time spent waiting for data above which the user is warned.
WAIT_SHARE = 0.1


class Throughput(Callback):
    """Logs images per second and the fraction of time spent waiting for data; excludes validation.

    "train/images_per_second" counts all processes. "train/data_wait", 0..1, is the fraction of the
    time that the first process waits for the next batch of a `fsanet.data.batches.Loader`; other
    loaders do not report it. The first batch of a run, for which workers start, does not count. A
    GPU works through its queue meanwhile, so there it is an upper bound. A run that waits for more
    than `WAIT_SHARE` of an epoch warns once, and says what to do.

    Args:
        window: number of batches to average over, the latest of the epoch.
    """

    def __init__(self, window: int) -> None:
        # (time, images, seconds waited) at the start of the window and after each batch
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=window + 1)
        self._epoch = (0.0, 0.0)  # time and seconds waited at its start
        self._batches = 0
        self._started = self._warned = False

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._started = self._warned = False
        self.on_train_epoch_start(trainer, module)  # else left out by a resume within an epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._epoch = time.perf_counter(), _waited(trainer)
        self._batches = 0
        self._marks.clear()
        self._marks.append((self._epoch[0], 0, self._epoch[1]))

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *args: Any) -> None:
        if not self._started:
            self._started = True
            self.on_train_epoch_start(trainer, module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        images = self._marks[-1][1] + len(batch[0]) * trainer.world_size
        self._marks.append((time.perf_counter(), images, _waited(trainer)))
        (start, before, early), (end, after, late) = self._marks[0], self._marks[-1]
        seconds = max(end - start, 1e-9)
        module.log("train/images_per_second", (after - before) / seconds)
        if isinstance(trainer.train_dataloader, Loader):
            module.log("train/data_wait", (late - early) / seconds)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        end, _, waited = self._marks[-1]
        share = (waited - self._epoch[1]) / max(end - self._epoch[0], 1e-9)
        enough = self._batches >= 3  # a batch or two say nothing about a run
        if enough and share > WAIT_SHARE and trainer.is_global_zero and not self._warned:
            self._warned = True
            data = getattr(trainer, "datamodule", None)
            warnings.warn(
                f"training waits for data {100 * share:.0f} % of the time; {_faster_loading(data)}"
                "; benchmarks/data_loading.py measures the pipeline",
                UserWarning,
                stacklevel=1,
            )


def _waited(trainer: lightning.Trainer) -> float:
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, Loader) else 0.0


def _faster_loading(data: Any) -> str:
    """What can be done, given the options of the data module."""
    workers = getattr(data, "workers", None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    now = "" if workers is None else f" (now {workers}; {cores} cores here)"
    advice = f"raise --data.workers{now}"
    if getattr(data, "cache", None) is False:
        advice += ", or give --data.cache true if the decoded images fit into memory"
    return advice


class EpochLines(Callback):
    """Prints one line per epoch, for consoles that cannot show a progress bar.

    Within the first epoch, a line every half minute shows that the training goes on, and how fast.

    Args:
        steps: optimiser steps of the run.
        monitor: metric of validation to print.
    """

    def __init__(self, steps: int, monitor: str) -> None:
        self.steps = steps
        self.monitor = monitor
        self._start = time.perf_counter()
        self._first = 0
        self._next: float = self._start  # time of the next line within the first epoch

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._start, self._first = time.perf_counter(), trainer.global_step
        self._next = self._start + LINE_EVERY

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if time.perf_counter() >= self._next:
            self._next += LINE_EVERY
            self._print(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._next = math.inf
        self._print(trainer)

    def _print(self, trainer: lightning.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        step, found = trainer.global_step, trainer.callback_metrics
        per_step = (time.perf_counter() - self._start) / max(step - self._first, 1)
        parts = [f"step {step}/{self.steps}"]
        for label, key, digits in (
            ("loss", "train/loss", 4),
            (self.monitor, self.monitor, 4),
            ("images/s", "train/images_per_second", 1),
        ):
            if key in found:
                parts.append(f"{label} {found[key].item():.{digits}f}")
        if "train/data_wait" in found and found["train/data_wait"].item() > WAIT_SHARE:
            parts.append(f"waiting for data {100 * found['train/data_wait'].item():.0f} %")
        parts.append(f"{per_step * max(self.steps - step, 0) / 60:.1f} min left")
        print(" · ".join(parts), flush=True)


class EvaluationProgress(Callback):
    """Shows how far an evaluation is: a bar on a terminal, a line every half minute elsewhere."""

    def __init__(self) -> None:
        self._progress = ConsoleProgress("images", shown=first_process())

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        split = "test" if trainer.testing else "val"
        images = len(trainer.datamodule.dataset(split))  # type: ignore[attr-defined]
        self._task = self._progress.add_task(f"{split} split", total=images)
        self._progress.start()

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._progress.update(self._task, advance=len(batch[0]) * trainer.world_size)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._progress.stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: Any) -> None:
        self._progress.stop()

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end


class DepthwiseInFloat32(Callback):
    """Computes depthwise convolutions with a stride or dilation in float32 on a CPU.

    oneDNN has no fast bfloat16 gradient of these (torch 2.15, Xeon with AMX, 960 channels dilated
    by 2: 318 ms, of which float32 takes 71), and two or three of them can be half of a step.
    """

    def on_fit_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if module.device.type == "cpu":
            depthwise_in_float32(module.model)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        for conv in module.model.modules():
            if isinstance(getattr(conv, "forward", None), functools.partial):
                del conv.forward


def depthwise_in_float32(network: nn.Module) -> None:
    """Do to a network what `DepthwiseInFloat32` does."""
    for conv in network.modules():
        if not isinstance(conv, nn.Conv2d) or not conv.groups == conv.in_channels > 1:
            continue
        if max(*conv.stride, *conv.dilation) > 1:
            conv.forward = functools.partial(_in_float32, conv)  # type: ignore[method-assign]


def _in_float32(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return type(conv).forward(conv, x.float())


class SynchronisedBatchNorm(LayerSync):
    """Batch statistics over all processes, which keeps the activation that timm fuses into norms.

    Lightning's own converter silently drops that activation.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # it computes local statistics again once the process group is gone
