"""Train a network into a run folder, and go on from one.

A run folder holds `config.yaml`, `metrics.csv`, `tensorboard/`, `checkpoints/last.ckpt` (all
that is needed to resume), `checkpoints/best.ckpt` (weights with the best validation mIoU) and
`model/` (the same weights, for `from_pretrained`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch.callbacks import Callback

from fsanet.data.batches import SegmentationData
from fsanet.train.evaluation import evaluate
from fsanet.train.run import fit
from fsanet.train.semantic import SemanticSegmentation

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
        global_batch: images of an optimiser step, over all processes, that `lr` was chosen for; a
            warning says so when this training has another number. None: not compared.
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
    done = fit(
        task,
        data,
        score=_miou,
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
    return TrainResult(
        out=Path(out),
        model=Path(out) / "model",
        miou=done.best_score,
        best_step=done.best_step,
        steps=done.steps,
        seconds=done.seconds,
    )


def _miou(task: SemanticSegmentation) -> float:
    return math.nan if task.scores is None else task.scores.miou
