"""Train an instance segmentation network into a run folder, and evaluate what is in one.

The run folder, resuming and what makes a run repeatable are those of `fsanet.train.training`;
the best weights are those with the highest mask AP.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import nn

from fsanet.convert import load_model
from fsanet.data.batches import InstanceData
from fsanet.errors import InputError
from fsanet.metrics.average_precision import ApScores
from fsanet.train.instances import InstanceSegmentation
from fsanet.train.run import Precision, fit
from fsanet.train.trainer import check_classes, check_shares, interruptible, make_trainer


@dataclass(frozen=True)
class InstanceTrainResult:
    """What a run left; see `fsanet.train.training.TrainResult`.

    Attributes:
        mask_ap: best mask AP in validation, nan without one.
    """

    out: Path
    model: Path
    mask_ap: float
    best_step: int
    steps: int
    seconds: float


def train_instances(
    task: InstanceSegmentation,
    data: InstanceData,
    *,
    out: str | os.PathLike[str],
    steps: int,
    val_every: int = 1,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    sync_batchnorm: bool = True,
    global_batch: int | None = None,
    gradient_clip: float | None = None,
    deterministic: bool = False,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    log_every: int = 10,
    progress: bool = True,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> InstanceTrainResult:
    """Train for `steps` optimiser steps, with validation and a checkpoint after every epoch.

    Args:
        task: the network with its optimiser.
        data: gives batches and samplers.
        out: run folder.
        steps: optimiser steps in all; the milestones are shares of them.
        val_every: epochs between validations.
        precision: of the arithmetic; "bf16-mixed" or "16-mixed" save memory on a GPU.
        accelerator: "cpu", "gpu", or "auto".
        devices: processes per node (each takes `data.batch_size` images a batch), or "auto".
        num_nodes: machines.
        strategy: how processes work together, "ddp" for instance; "auto" chooses.
        sync_batchnorm: batch statistics over all GPUs, where batch norms are not frozen.
        global_batch: images of an optimiser step, over all processes, that `lr` was chosen for; a
            warning says so when this training has another number. None: not compared.
        gradient_clip: largest norm of the gradient; None leaves it as it is.
        deterministic: deterministic kernels only, slower on a GPU.
        seed: of everything random that is not the data's.
        resume: go on with the run in `out`, from the end of its last whole epoch.
        overwrite: delete the run in `out` first.
        log_every: optimiser steps between logged values.
        progress: show a progress bar on a terminal, else one line an epoch.
        config: text kept as config.yaml; by default the arguments of this call.
        callbacks: more of Lightning's callbacks.

    Raises:
        InputError: `out` cannot be written or holds a run already, there is nothing to resume,
            the checkpoint does not fit, an option is out of range, the loss is not finite.
        KeyboardInterrupt: interrupted by the user; `resume` goes on.
    """
    done = fit(
        task,
        data,
        score=_mask_ap,
        out=out,
        steps=steps,
        val_every=val_every,
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        sync_batchnorm=sync_batchnorm,
        global_batch=global_batch,
        gradient_clip=gradient_clip,
        deterministic=deterministic,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        log_every=log_every,
        progress=progress,
        config=config,
        callbacks=callbacks,
    )
    return InstanceTrainResult(
        out=Path(out),
        model=Path(out) / "model",
        mask_ap=done.best_score,
        best_step=done.best_step,
        steps=done.steps,
        seconds=done.seconds,
    )


def _mask_ap(task: InstanceSegmentation) -> float:
    return math.nan if task.scores is None else task.scores.mask["AP"]


def evaluate_instances(
    model: nn.Module | str | os.PathLike[str],
    data: InstanceData,
    *,
    split: Literal["val", "test"] = "val",
    precision: Precision = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> ApScores:
    """Box and mask AP of a model on a split.

    Args:
        model: a network, a run folder, or a folder written by `save_pretrained`.
        data: gives the images.
        split: "val" or "test".
        precision: of the arithmetic.
        accelerator: "cpu", "gpu", or "auto".
        devices: processes per node, or "auto".
        num_nodes: machines.
        strategy: how processes work together.
        progress: show a progress bar on a terminal.

    Raises:
        InputError: the folder holds no model, or the model has other classes than the data.
    """
    network = load_model(model, task="instances")
    check_classes(network, data)
    task = InstanceSegmentation(network, classes=data.classes)
    trainer = make_trainer(
        Path.cwd(),
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        callbacks=[RichProgressBar()] if progress and sys.stdout.isatty() else [],
    )
    data.setup("validate" if split == "val" else "test")
    check_shares(data, split, trainer.world_size)
    run = trainer.validate if split == "val" else trainer.test
    was_training = network.training
    interruptible(trainer, lambda: run(task, datamodule=data, verbose=False))
    network.train(was_training)
    if task.scores is None:
        raise InputError(f"the {split} split holds no image")
    return task.scores
