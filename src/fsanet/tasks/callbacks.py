"""What happens around the steps of a training run: seeds, stops, speed, lines, best model."""

from __future__ import annotations

import math
import os
import random
import shutil
import time
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


class Throughput(Callback):
    """Logs "train/images_per_second", over all processes, without the time of validation.

    Args:
        window: batches to average over, the latest of the epoch.
    """

    def __init__(self, window: int) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)  # time, images so far

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._marks.clear()
        self._marks.append((time.perf_counter(), 0))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        images = self._marks[-1][1] + len(batch[0]) * trainer.world_size
        self._marks.append((time.perf_counter(), images))
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        pl_module.log("train/images_per_second", (after - before) / max(end - start, 1e-9))


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
