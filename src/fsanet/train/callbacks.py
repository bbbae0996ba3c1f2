"""What happens around the steps of a training run: seeds, stops, speed, lines, best model."""

from __future__ import annotations

import math
import os
import random
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from fsanet.data.batches import Loader


class SeedEachBatch(Callback):
    """Makes everything random in a step (dropout above all) a function of seed, batch, process.

    So a run that is resumed goes on as one that was never interrupted, whatever else draws
    from the random state (loaders do when they start, and they start at other times then).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        key = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        words = np.random.SeedSequence(key).generate_state(4)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
        np.random.seed(words[2])  # noqa: NPY002
        random.seed(int(words[3]))


class StopAtStep(Callback):
    """Ends training at an exact optimiser step, with a last validation, even within an epoch."""

    def __init__(self, steps: int, *, val_every: int) -> None:
        self.steps = steps
        self.val_every = val_every

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        batches = trainer.num_training_batches
        last = trainer.global_step + batches // trainer.accumulate_grad_batches >= self.steps
        trainer.check_val_every_n_epoch = 1 if last else self.val_every

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


#: Share of the time spent waiting for data above which a user is told.
WAIT_SHARE = 0.1


class Throughput(Callback):
    """Logs images a second and the share of waiting for data, without the time of validation.

    "train/images_per_second" is over all processes. "train/data_wait", 0..1, is the share of the
    time that the first process waits for the next batch of a `fsanet.data.batches.Loader`; other
    loaders do not say. The first batch of a run, for which workers start, does not count. On a
    GPU, work that is still queued goes on meanwhile, so there it is an upper bound. A run that
    waits for more than `WAIT_SHARE` of an epoch says so once, and what to do.

    Args:
        window: batches to average over, the latest of the epoch.
    """

    def __init__(self, window: int) -> None:
        # time, images, seconds waited, all since some start; one entry a batch
        self._marks: deque[tuple[float, int, float]] = deque(maxlen=window + 1)
        self._epoch = (0.0, 0.0)  # time and seconds waited at its start
        self._batches = 0
        self._started = self._told = False

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._started = self._told = False

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._begin(trainer)

    def _begin(self, trainer: lightning.Trainer) -> None:
        self._epoch = time.perf_counter(), _waited(trainer)
        self._batches = 0
        self._marks.clear()
        self._marks.append((self._epoch[0], 0, self._epoch[1]))

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self._started:
            self._started = True
            self._begin(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batches += 1
        images = self._marks[-1][1] + len(batch[0]) * trainer.world_size
        self._marks.append((time.perf_counter(), images, _waited(trainer)))
        (start, before, early), (end, after, late) = self._marks[0], self._marks[-1]
        seconds = max(end - start, 1e-9)
        pl_module.log("train/images_per_second", (after - before) / seconds)
        if isinstance(trainer.train_dataloader, Loader):
            pl_module.log("train/data_wait", (late - early) / seconds)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        end, _, waited = self._marks[-1]
        share = (waited - self._epoch[1]) / max(end - self._epoch[0], 1e-9)
        # A batch or two say nothing about a run.
        if self._told or self._batches < 3 or share <= WAIT_SHARE or not trainer.is_global_zero:
            return
        self._told = True
        data = getattr(trainer, "datamodule", None)
        warnings.warn(
            f"training waits for data {100 * share:.0f} % of the time; {_faster_loading(data)}; "
            "benchmarks/data_loading.py measures the pipeline",
            UserWarning,
            stacklevel=1,
        )


def _waited(trainer: lightning.Trainer) -> float:
    loader = trainer.train_dataloader
    return loader.waited if isinstance(loader, Loader) else 0.0


def _faster_loading(data: Any) -> str:
    """What can be done, from the options of the data module."""
    workers = getattr(data, "workers", None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    now = "" if workers is None else f" (now {workers}; {cores} cores here)"
    advice = f"raise data.init_args.workers{now}"
    if getattr(data, "cache", None) is False:
        advice += ", or set data.init_args.cache: true if the decoded images fit into memory"
    return advice


class EpochLines(Callback):
    """One plain line an epoch, for consoles on which a progress bar cannot move."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._start = time.perf_counter()
        self._first = 0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._start, self._first = time.perf_counter(), trainer.global_step

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        left = (
            (time.perf_counter() - self._start)
            / max(step - self._first, 1)
            * max(self.steps - step, 0)
        )
        parts = [f"step {step}/{self.steps}"]
        for label, key, shape in (
            ("loss", "train/loss", ".4f"),
            ("mIoU", "val/miou", ".4f"),
            ("images/s", "train/images_per_second", ".1f"),
        ):
            if key in trainer.callback_metrics:
                parts.append(f"{label} {trainer.callback_metrics[key].item():{shape}}")
        wait = trainer.callback_metrics.get("train/data_wait")
        if wait is not None and wait.item() > WAIT_SHARE:
            parts.append(f"waiting for data {100 * wait.item():.0f} %")
        parts.append(f"{left / 60:.1f} min left")
        print(" · ".join(parts), flush=True)


class KeepBest(Callback):
    """Saves the weights with the highest validation score: `checkpoints/best.ckpt`, `model/`.

    Args:
        out: run folder.
        score_of: the score of a task after a validation, the same on every process; nan is
            never the best.

    Attributes:
        score: best one so far, -inf before the first validation.
        step: optimiser steps done at that time.
    """

    def __init__(self, out: Path, score_of: Callable[[Any], float]) -> None:
        self.out = out
        self.score_of = score_of
        self.score = -math.inf
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step = state_dict["score"], state_dict["step"]

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        score = self.score_of(pl_module)
        if score > self.score:
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(self.out / "checkpoints" / "best.ckpt", weights_only=True)
            if trainer.is_global_zero:
                export_model(pl_module.model, self.out / "model")  # type: ignore[arg-type]


def export_model(model: nn.Module, folder: Path) -> None:
    """`model.save_pretrained(folder)`, each file replaced whole, the weights before the rest."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)  # type: ignore[operator]
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(partial.iterdir(), key=lambda path: path.suffix == ".json"):
        os.replace(file, folder / file.name)
    partial.rmdir()


class SynchronisedBatchNorm(LayerSync):
    """Batch statistics over all processes; keeps the activation that timm fuses into its norms.

    Lightning's own converter drops that activation without a word.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model  # it counts locally again once the process group is gone
