"""Train an instance segmentation network into a run folder, and evaluate what is in one.

The run folder, resuming and what makes a run repeatable are those of `fsanet.tasks.training`;
the best weights are those with the highest mask AP.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from fsanet.data.instances import InstanceData
from fsanet.errors import InputError
from fsanet.files import write_text
from fsanet.tasks.average_precision import ApScores
from fsanet.tasks.callbacks import (
    KeepBest,
    SeedEachBatch,
    StopAtStep,
    SynchronisedBatchNorm,
    Throughput,
    export_model,
)
from fsanet.tasks.instances import InstanceSegmentation
from fsanet.tasks.logs import MetricsFile
from fsanet.tasks.run_folder import first_process, prepare, steps_done
from fsanet.tasks.trainer import (
    check_classes,
    check_shares,
    console,
    interruptible,
    make_trainer,
    synchronises,
)

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True)
class InstanceTrainResult:
    """What a run left; see `fsanet.tasks.training.TrainResult`.

    Attributes:
        mask_ap: best mask AP in validation, nan without one.
    """

    out: Path
    model: Path
    mask_ap: float
    best_step: int
    steps: int
    seconds: float


class KeepBestMaskAp(KeepBest):
    """Saves the weights with the highest mask AP in validation."""

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        scores = cast(InstanceSegmentation, pl_module).scores
        score = math.nan if scores is None else scores.mask["AP"]  # the same on every process
        if score > self.score:
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(self.out / "checkpoints" / "best.ckpt", weights_only=True)
            if trainer.is_global_zero:
                export_model(cast(InstanceSegmentation, pl_module).model, self.out / "model")


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
    out = Path(out)
    counts = {"steps": steps, "val_every": val_every, "log_every": log_every, "devices": devices}
    for name, value in counts.items():
        if isinstance(value, int) and value < 1:
            raise InputError(f"{name}={value}: give a number of at least 1")
    if seed < 0:
        raise InputError(f"seed={seed}: give a number of at least 0")
    if gradient_clip is not None and gradient_clip <= 0:
        raise InputError(f"gradient_clip={gradient_clip}: give a norm above 0")
    if task.warmup_steps >= steps:
        raise InputError(f"warmup_steps={task.warmup_steps}: the training has only {steps} steps")
    check_classes(task.model, cast(Any, data))
    last = out / "checkpoints" / "last.ckpt"
    done = steps_done(last, cast(Any, task)) if resume else 0
    if done < steps and done % data.steps_per_epoch:
        raise InputError(
            f"{last}: the run ended within an epoch, at step {done} of epochs of "
            f"{data.steps_per_epoch} steps, and cannot be made longer"
        )
    best = KeepBestMaskAp(out)
    task.total_steps = steps
    trainer = make_trainer(
        out,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        deterministic=deterministic,
        # Not max_steps: with it, Lightning counts epochs wrongly after a resume.
        max_epochs=-(-steps // data.steps_per_epoch),
        accumulate_grad_batches=data.accumulate,
        check_val_every_n_epoch=val_every,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=min(log_every, data.steps_per_epoch),
        logger=[
            MetricsFile(out / "metrics.csv", resume_step=done),
            TensorBoardLogger(
                out,
                name="tensorboard",
                version="",
                default_hp_metric=False,
                purge_step=done if done else None,
            ),
        ],
        callbacks=[
            SeedEachBatch(seed),
            StopAtStep(steps, val_every=val_every),
            Throughput(log_every),
            *console(progress, steps),
            *callbacks,
            best,
            ModelCheckpoint(
                dirpath=last.parent,
                filename=last.stem,
                every_n_epochs=1,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ],
        plugins=[SynchronisedBatchNorm()] if synchronises(sync_batchnorm, accelerator) else [],
    )
    data.setup("fit")  # finds what is wrong with the data before anything is written
    check_shares(cast(Any, data), "val", trainer.world_size)
    if first_process():  # last, so that no run is overwritten by one that cannot start
        prepare(out, resume=resume, overwrite=overwrite)
        if not (resume and (out / "config.yaml").is_file()):
            arguments = {
                "steps": steps,
                "val_every": val_every,
                "precision": precision,
                "gradient_clip": gradient_clip,
                "seed": seed,
            }
            write_text(out / "config.yaml", config or yaml.safe_dump(arguments, sort_keys=False))
    began = time.perf_counter()
    interruptible(
        trainer,
        lambda: trainer.fit(
            task, datamodule=data, ckpt_path=last if resume else None, weights_only=True
        ),
    )
    if best.step == 0 and trainer.is_global_zero:  # nothing was validated
        export_model(task.model, out / "model")
    return InstanceTrainResult(
        out=out,
        model=out / "model",
        mask_ap=best.score if best.step else math.nan,
        best_step=best.step,
        steps=trainer.global_step,
        seconds=time.perf_counter() - began,
    )


def load_instance_model(model: nn.Module | str | os.PathLike[str]) -> nn.Module:
    """The network itself, from a folder of ``save_pretrained``, a training run, or the hub."""
    if isinstance(model, nn.Module):
        return model
    from fsanet.models.mask_rcnn import MaskRcnnFsa

    inner = Path(model, "model")  # where a training run keeps its best
    if (inner / "config.json").is_file() and not Path(model, "config.json").is_file():
        model = inner
    return MaskRcnnFsa.from_pretrained(os.fspath(model))


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
    network = load_instance_model(model)
    check_classes(network, cast(Any, data))
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
    check_shares(cast(Any, data), split, trainer.world_size)
    run = trainer.validate if split == "val" else trainer.test
    was_training = network.training
    interruptible(trainer, lambda: run(task, datamodule=data, verbose=False))
    network.train(was_training)
    if task.scores is None:
        raise InputError(f"the {split} split holds no image")
    return task.scores
