"""The training loop that semantic and instance segmentation share: a run folder, resumable."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from fsanet.errors import InputError
from fsanet.files import first_process, write_text
from fsanet.train.callbacks import (
    KeepBest,
    SeedEachBatch,
    StopAtStep,
    SynchronisedBatchNorm,
    Throughput,
    export_model,
)
from fsanet.train.logs import MetricsFile
from fsanet.train.run_folder import prepare, steps_done
from fsanet.train.trainer import (
    check_batch,
    check_classes,
    check_shares,
    console,
    interruptible,
    make_trainer,
    synchronises,
)

if TYPE_CHECKING:
    from fsanet.data.batches import InstanceData, SegmentationData
    from fsanet.train.instances import InstanceSegmentation
    from fsanet.train.semantic import SemanticSegmentation

__all__ = ["Fit", "Precision", "fit"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True)
class Fit:
    """What the loop did: the best score (nan without validation) and when, steps and seconds."""

    best_score: float
    best_step: int
    steps: int
    seconds: float


def fit(
    task: SemanticSegmentation | InstanceSegmentation,
    data: SegmentationData | InstanceData,
    *,
    score: Callable[[Any], float],
    out: str | os.PathLike[str],
    steps: int,
    val_every: int,
    precision: Precision,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    strategy: str,
    sync_batchnorm: bool,
    global_batch: int | None,
    gradient_clip: float | None,
    deterministic: bool,
    seed: int,
    resume: bool,
    overwrite: bool,
    log_every: int,
    progress: bool,
    config: str | None,
    callbacks: Sequence[Callback],
) -> Fit:
    """Train ``task`` on ``data``; all arguments but one are those of `fsanet.train.train`.

    Args:
        score: of the task after a validation: the weights with the highest one are kept.
    """
    out = Path(out)
    epoch_steps = data.steps_per_epoch
    checks = {
        "steps": steps,
        "val_every": val_every,
        "log_every": log_every,
        "devices": devices,
        "global_batch": global_batch,
    }
    for name, value in checks.items():
        if isinstance(value, int) and value < 1:
            raise InputError(f"{name}={value}: give a number of at least 1")
    if seed < 0:
        raise InputError(f"seed={seed}: give a number of at least 0")
    if gradient_clip is not None and gradient_clip <= 0:
        raise InputError(f"gradient_clip={gradient_clip}: give a norm above 0")
    if task.warmup_steps >= steps:
        raise InputError(f"warmup_steps={task.warmup_steps}: the training has only {steps} steps")
    check_classes(task.model, data)
    last = out / "checkpoints" / "last.ckpt"
    done = steps_done(last, task) if resume else 0
    if done < steps and done % epoch_steps:
        raise InputError(
            f"{last}: the run ended within an epoch, at step {done} of epochs of {epoch_steps} "
            "steps, and cannot be made longer"
        )
    if config is None:
        config = yaml.safe_dump(
            {
                "steps": steps,
                "val_every": val_every,
                "precision": precision,
                "gradient_clip": gradient_clip,
                "seed": seed,
            },
            sort_keys=False,
        )
    best = KeepBest(out, score)
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
        max_epochs=-(-steps // epoch_steps),
        accumulate_grad_batches=data.accumulate,
        check_val_every_n_epoch=val_every,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=min(log_every, epoch_steps),
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
    data.prepare_data()
    data.setup("fit")  # finds what is wrong with the data before anything is written
    check_shares(data, "val", trainer.world_size)
    check_batch(data, trainer.world_size, global_batch, task.lr)
    if first_process():  # last, so that no run is overwritten by one that cannot start
        prepare(out, resume=resume, overwrite=overwrite)
        if not (resume and (out / "config.yaml").is_file()):
            write_text(out / "config.yaml", config)
    began = time.perf_counter()
    interruptible(
        trainer,
        lambda: trainer.fit(
            task, datamodule=data, ckpt_path=last if resume else None, weights_only=True
        ),
    )
    if best.step == 0 and trainer.is_global_zero:  # nothing was validated
        export_model(task.model, out / "model")
    return Fit(
        best_score=best.score if best.step else math.nan,
        best_step=best.step,
        steps=trainer.global_step,
        seconds=time.perf_counter() - began,
    )
