"""Train a network into a run folder, and go on from one.

A run folder holds `config.yaml`, `metrics.csv`, `tensorboard/`, `checkpoints/last.ckpt` (all
that is needed to resume), `checkpoints/best.ckpt` (weights with the best validation mIoU) and
`model/` (the same weights, for `from_pretrained`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from fsanet.data.module import SegmentationData
from fsanet.errors import InputError
from fsanet.files import write_text
from fsanet.tasks.callbacks import (
    KeepBest,
    SeedEachBatch,
    StopAtStep,
    SynchronisedBatchNorm,
    Throughput,
    export_model,
)
from fsanet.tasks.evaluation import evaluate
from fsanet.tasks.logs import MetricsFile
from fsanet.tasks.run_folder import first_process, prepare, steps_done
from fsanet.tasks.segmentation import SemanticSegmentation
from fsanet.tasks.trainer import (
    check_classes,
    check_shares,
    console,
    interruptible,
    make_trainer,
    synchronises,
)

__all__ = ["TrainResult", "evaluate", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        out: run folder.
        model: folder with the best weights, for `from_pretrained`.
        miou: best validation mIoU, nan without validation.
        best_step: optimiser steps done when it was reached.
        steps: optimiser steps done in all.
        seconds: wall time of this process' part of the training.
    """

    out: Path
    model: Path
    miou: float
    best_step: int
    steps: int
    seconds: float


def train(
    task: SemanticSegmentation,
    data: SegmentationData,
    *,
    out: str | os.PathLike[str],
    steps: int,
    val_every: int = 1,
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true",
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
) -> TrainResult:
    """Train for `steps` optimiser steps, with validation and a checkpoint after every epoch.

    An epoch is `data.steps_per_epoch` optimiser steps of `data.accumulate` batches. The last
    one ends at `steps`, however short that makes it, and is always validated.

    Resuming goes on from the end of the last whole epoch. With the same arguments, and on the
    same device, a run interrupted at any time ends with the weights of one that was not
    (CPU: exactly; CUDA: as far as its kernels are deterministic, see `deterministic`).

    Args:
        task: the network with its loss and optimiser.
        data: gives batches and samplers.
        out: run folder.
        steps: optimiser steps in all; the learning-rate schedule ends there.
        val_every: epochs between validations.
        precision: of the arithmetic; "bf16-mixed" or "16-mixed" save memory on a GPU.
        accelerator: "cpu", "gpu", or "auto".
        devices: processes per node (each takes `data.batch_size` images a batch), or "auto".
        num_nodes: machines.
        strategy: how processes work together, "ddp" for instance; "auto" chooses.
        sync_batchnorm: batch statistics over all GPUs. Not available, and not done, on CPU.
        gradient_clip: largest norm of the gradient; None leaves it as it is.
        deterministic: deterministic kernels only, slower on a GPU.
        seed: of dropout and everything else random that is not the data's.
        resume: go on with the run in `out`.
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
    epoch_steps = data.steps_per_epoch
    checks = {"steps": steps, "val_every": val_every, "log_every": log_every, "devices": devices}
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
    best = KeepBest(out)
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
    return TrainResult(
        out=out,
        model=out / "model",
        miou=best.score if best.step else float("nan"),
        best_step=best.step,
        steps=trainer.global_step,
        seconds=time.perf_counter() - began,
    )
