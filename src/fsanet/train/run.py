"""Train a network into a run folder, resume it, and evaluate a network on a split.

A run folder holds `config.yaml`, `metrics.csv`, `tensorboard/`, `checkpoints/last.ckpt` (all that
is needed to resume) and the `last-previous.ckpt` before it, `checkpoints/best.ckpt` (the weights
with the best validation score) and `model/` (the same weights, for `fsanet.load_model`).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
import yaml
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn

from fsanet.convert import load_model
from fsanet.data.batches import InstanceData, SegmentationData, described_data
from fsanet.errors import InputError, check_range, one_line
from fsanet.files import check_writable, disk_error, first_process, lock_folder, write_text
from fsanet.metrics.average_precision import ApScores
from fsanet.metrics.boundary import BoundaryQuality, check_bands
from fsanet.metrics.confusion import Scores
from fsanet.models.saving import take_weights
from fsanet.models.segmenter import Segmenter, check_settings
from fsanet.signals import Interrupted, deferred
from fsanet.train.callbacks import (
    DepthwiseInFloat32,
    EpochLines,
    EvaluationProgress,
    SeedEachBatch,
    StopAtStep,
    SynchronisedBatchNorm,
    Throughput,
)
from fsanet.train.checkpoints import (
    CheckpointFiles,
    Checkpoints,
    export_model,
    find_checkpoint,
    network_options,
)
from fsanet.train.features import FeatureCache
from fsanet.train.instances import InstanceSegmentation
from fsanet.train.logs import LoggerName, MetricsFile, check_logger, make_loggers
from fsanet.train.semantic import SemanticSegmentation
from fsanet.train.trainer import (
    check_batch,
    check_classes,
    check_shares,
    interruptible,
    make_trainer,
)

__all__ = ["TrainingResult", "check_evaluation", "check_options", "evaluate", "train"]


@dataclass(frozen=True)
class TrainingResult:
    """Where a training run is, and what it reached.

    Attributes:
        out: run folder.
        model: folder with the best weights, for `fsanet.load_model`.
        monitor: metric by which the best weights were chosen, such as "val/miou".
        best_score: its best value, nan without validation.
        best_step: optimiser steps done when it was reached.
        steps: optimiser steps done in total.
        seconds: wall time of this call's part of the training.
    """

    out: Path
    model: Path
    monitor: str
    best_score: float
    best_step: int
    steps: int
    seconds: float


def train(
    task: SemanticSegmentation | InstanceSegmentation,
    data: SegmentationData | InstanceData,
    *,
    out: str | os.PathLike[str],
    steps: int,
    val_every: int = 1,
    sync_batchnorm: bool = True,
    global_batch: int | None = None,
    gradient_clip: float | None = None,
    cache_features: list[float] | None = None,
    init_from: str | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    log_every: int = 10,
    progress: bool = True,
    config: str | None = None,
    command: str | None = None,
    callbacks: Sequence[Callback] = (),
    logger: LoggerName | Logger | Sequence[Logger] = "tensorboard",
    **trainer_options: Any,
) -> TrainingResult:
    """Train for `steps` optimiser steps, with validation and a checkpoint after every epoch.

    An epoch is `data.steps_per_epoch` optimiser steps of `data.accumulate` batches. The last epoch
    ends at `steps`, even if that makes it shorter, and is always validated.

    SIGINT, SIGTERM and SIGHUP end the training after the current step, with a checkpoint of it.
    With the same arguments and on the same device, a run interrupted in any way and resumed ends
    with the same weights as one that was not (CPU: exactly; CUDA: as far as its kernels are
    deterministic, see `deterministic`).

    Args:
        task: the network with its loss and optimiser.
        data: provides batches and samplers.
        out: run folder.
        steps: optimiser steps in total; the learning-rate schedule ends there.
        val_every: epochs between validations.
        sync_batchnorm: compute batch statistics over all GPUs, except in frozen norms; no effect on
            a CPU.
        global_batch: images per optimiser step, over all processes, that `lr` was chosen for; a
            warning is given if this training has another number. None: no comparison.
        gradient_clip: largest norm of the gradient; None for no limit.
        cache_features: with frozen stages (`task.freeze`), compute their features once for all
            training images, resized by these factors, and train on them; see docs/fine_tuning.md.
        init_from: start from the weights of this network: a run folder, or anything else that
            `fsanet.load_model` opens. Weights that it lacks, or has in another shape (such as those
            of other classes), are initialised from scratch and listed. `resume` does not read it
            again.
        seed: seed of dropout and all other randomness outside the data module.
        resume: continue the run in `out`.
        overwrite: delete the run in `out` first.
        log_every: optimiser steps between logged values.
        progress: show a progress bar on a terminal, else one line per epoch.
        config: text to keep as config.yaml; by default the arguments of this call and the data,
            so that `fsanet eval` finds them.
        command: the command line, for the model card.
        callbacks: additional Lightning callbacks.
        logger: where metrics go besides metrics.csv: "tensorboard", "wandb", "mlflow" or "none", or
            from Python any Lightning logger or several.
        **trainer_options: see `make_trainer`.

    Raises:
        InputError: `out` cannot be written, holds a run already or is in use; there is nothing to
            resume, or the checkpoint does not fit; an option is out of range; the loss is not
            finite; the disk is full.
        Interrupted: a signal was received; `resume` continues.
    """
    out = Path(out)
    epoch = data.steps_per_epoch, data.accumulate
    options: dict[str, Any] = {
        "steps": steps,
        "val_every": val_every,
        "log_every": log_every,
        "global_batch": global_batch,
        "gradient_clip": gradient_clip,
        "cache_features": cache_features,
        "init_from": init_from,
        "seed": seed,
        **trainer_options,
    }
    if isinstance(logger, str):
        options["logger"] = logger
    check_options(out, resume=resume, overwrite=overwrite, **options)
    if task.warmup_steps >= steps:
        raise InputError(f"warmup_steps={task.warmup_steps}: the training has only {steps} steps")
    check_classes(task.model, data)
    if init_from is not None and not resume:
        _start_from(init_from, task)
    task.total_steps = steps
    with lock_folder(out, "is being trained"):
        last, done = find_checkpoint(out, task, steps=steps, epoch=epoch) if resume else (None, 0)
        cache: list[FeatureCache] = []
        if cache_features is not None and done < steps:
            cache = [FeatureCache(task, data, out, cache_features)]
        checkpoints = Checkpoints(
            out,
            task.monitor,
            steps=steps,
            epoch=epoch,
            network=network_options(task.network),
            command=command,
        )
        console: list[Callback] = []
        if progress:
            bar = RichProgressBar(refresh_rate=5) if sys.stdout.isatty() else None
            console = [bar or EpochLines(steps, task.monitor)]
        accelerator = {"accelerator": "auto", **trainer_options}["accelerator"]
        mixed = trainer_options.get("precision") == "bf16-mixed"
        may_use_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        trainer = make_trainer(
            {
                "default_root_dir": out,
                # Not max_steps: with it, Lightning counts epochs wrongly after a resume.
                "max_epochs": -(-steps // data.steps_per_epoch),
                "accumulate_grad_batches": data.accumulate,
                "check_val_every_n_epoch": val_every,
                "gradient_clip_val": gradient_clip,
                "log_every_n_steps": min(log_every, data.steps_per_epoch),
                "logger": [
                    MetricsFile(out / "metrics.csv", resume_step=done),
                    *make_loggers(logger, out, done),
                ],
                "callbacks": [
                    SeedEachBatch(seed),
                    StopAtStep(steps, val_every=val_every),
                    Throughput(log_every),
                    *([DepthwiseInFloat32()] if mixed else []),
                    *cache,
                    *console,
                    *callbacks,
                    checkpoints,
                ],
                "enable_checkpointing": False,  # `checkpoints` does it
                "plugins": [
                    CheckpointFiles(),
                    *([SynchronisedBatchNorm()] if sync_batchnorm and may_use_gpu else []),
                ],
            },
            **trainer_options,
        )
        data.prepare_data()
        data.setup("fit")  # finds what is wrong with the data before anything is written
        check_shares(data, "val", trainer.world_size)
        check_batch(data, trainer.world_size, global_batch, task.lr)
        if first_process():  # last, so that no run is overwritten by one that cannot start
            if overwrite and not resume:
                _remove_run(out)
            if config is None:
                config = yaml.safe_dump({**described_data(data), **options}, sort_keys=False)
            if not (resume and (out / "config.yaml").is_file()):
                write_text(out / "config.yaml", config)
        start = time.perf_counter()
        with _explained(out, checkpoints, last), deferred():  # until `checkpoints` has saved
            interruptible(
                lambda: trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)
            )
            if trainer.global_step >= steps and trainer.is_global_zero:
                shutil.rmtree(out / FeatureCache.folder, ignore_errors=True)
            if checkpoints.step == 0 and trainer.is_global_zero:  # nothing was validated
                task.network.training_facts = checkpoints.facts(trainer)
                export_model(task.network, out / "model")
    return TrainingResult(
        out=out,
        model=out / "model",
        monitor=task.monitor,
        best_score=checkpoints.score if checkpoints.step else math.nan,
        best_step=checkpoints.step,
        steps=trainer.global_step,
        seconds=time.perf_counter() - start,
    )


def _start_from(source: str, task: SemanticSegmentation | InstanceSegmentation) -> None:
    """Copy the weights of a saved network into that of a task, where name and shape agree.

    Raises:
        InputError: none agrees.
    """
    semantic = isinstance(task, SemanticSegmentation)
    given = load_model(source, task="semantic" if semantic else "instances")
    line = take_weights(task.model, given.state_dict(), source)
    if first_process():
        print(line, file=sys.stderr, flush=True)


# config.yaml last: as long as it is there, the others are known to be those of a run.
_PARTS = ("metrics.csv", "checkpoints", "model", "tensorboard", "features", "config.yaml")


def check_options(
    out: Path,
    *,
    steps: int,
    val_every: int = 1,
    log_every: int = 10,
    global_batch: int | None = None,
    gradient_clip: float | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    logger: Any = "none",
    **others: Any,
) -> None:
    """Check what `train` is given besides task and data; nothing is changed.

    Args:
        out: run folder.
        logger: its package has to be installed.
        others: further options of `train`.

    Raises:
        InputError: an option is out of range, `out` cannot be written, holds another run, no run
            to resume, or what `overwrite` would delete and is no run.
    """
    counts = {"steps": steps, "val_every": val_every, "log_every": log_every}
    for name, value in (counts | {"global_batch": global_batch}).items():
        if value is not None:
            check_range(name, value, 1, 10**9)
    check_range("seed", seed, 0, 2**32 - 1)
    if gradient_clip is not None:
        check_range("gradient_clip", gradient_clip, 0.0, 1e9, above=True)
    check_logger(logger)
    processes = inspect.signature(make_trainer).parameters.keys() & others.keys()
    make_trainer({"callbacks": (), "logger": False}, **{name: others[name] for name in processes})
    if not first_process():
        return
    present = [name for name in _PARTS if (out / name).exists()]
    if present and not resume and not overwrite:
        raise InputError(
            f"{out}: holds a run already ({', '.join(present)}); "
            "give --resume, --overwrite or another --out"
        )
    if resume and not any(out.glob("checkpoints/last*.ckpt")):
        raise InputError(f"{out}: nothing to resume; leave out --resume to start a run")
    for name in ("checkpoints", "model", "tensorboard", "features"):
        check_writable(out / name)
    if present and overwrite and not resume and not (out / "config.yaml").is_file():
        raise InputError(
            f"{out}: {', '.join(present)} in it belong to no run of fsanet train, which has a "
            "config.yaml; give another --out"
        )


@contextlib.contextmanager
def _explained(out: Path, checkpoints: Checkpoints, last: Path | None) -> Iterator[None]:
    """Say what is left of a training that ends early, and what can be done."""
    try:
        yield
    except Interrupted as stop:
        step = checkpoints.saved
        advice = "" if step is None else f"step {step} is saved, --resume continues from there"
        raise Interrupted(stop.number, advice) from stop
    except Exception as error:
        full = disk_error(error)
        if full is not None:
            raise InputError(
                f"{out}: cannot be written ({full.strerror}); free some space, and continue with "
                "--resume"
            ) from error
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if last is None or memory or isinstance(error, InputError) or not _in_restoring(error):
            raise
        raise InputError(
            f"{last}: does not fit this training ({one_line(error)}); resume with the "
            "options that it was started with"
        ) from error


def _in_restoring(error: Exception) -> bool:
    """Whether an error was raised while Lightning put the content of a checkpoint into place."""
    return any(
        frame.f_globals.get("__name__", "").endswith(".checkpoint_connector")
        and "resto" in frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _remove_run(out: Path) -> None:
    for name in _PARTS:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@overload
def evaluate(model: Any, data: SegmentationData, **options: Any) -> Scores: ...
@overload
def evaluate(model: Any, data: InstanceData, **options: Any) -> ApScores: ...
def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: SegmentationData | InstanceData,
    *,
    split: Literal["val", "test"] = "test",
    resize: tuple[int, int] | None = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    window_batch: int = 1,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    boundary: bool = False,
    boundary_ratio: float = 0.02,
    trimap: Sequence[int] = (1, 2, 4, 8, 16),
    progress: bool = True,
    **trainer_options: Any,
) -> Scores | ApScores:
    """Evaluate a network on a split: mIoU for semantic data, box and mask AP for instances.

    mIoU comes from one confusion matrix over all pixels of the split, at the size of the labels:
    images may be resized, cut into windows, seen at several scales and mirrored, but the prediction
    is brought back to the label's pixels. These ways of testing, and `boundary`, are for semantic
    segmentation.

    Args:
        model: a network, or whatever `fsanet.load_model` opens.
        data: provides the images; pixels labelled with its `ignore_index` do not count.
        split: "val" or "test".
        resize: resize each image first, with its aspect ratio, until its longer side is at most
            the first and its shorter side at most the second number: (2049, 1025) and (2048, 512)
            are published test sizes. Scores are at the label's size all the same.
        window: predict by a sliding window of this size, or (height, width); None: whole image.
        stride: step of that window; two thirds of it by default.
        window_batch: windows per forward pass.
        scales: predict at these scales, and average.
        flip: average with the prediction of the mirrored image.
        boundary: also compute boundary IoU and trimap mIoU; see `fsanet.metrics.boundary`.
        boundary_ratio: width of the boundary band as a fraction of the image diagonal.
        trimap: trimap widths in pixels.
        progress: show a progress bar on a terminal, else a line every half minute.
        **trainer_options: see `make_trainer`.

    Returns:
        `Scores`, or `ApScores` for instance data.

    Raises:
        InputError: no network in the folder, other classes than those of the data, an option out
            of range, an empty split.
    """
    check_evaluation(
        resize=resize,
        window=window,
        stride=stride,
        window_batch=window_batch,
        scales=scales,
        boundary_ratio=boundary_ratio,
        trimap=trimap,
    )
    views: dict[str, Any] = {
        "window": window,
        "stride": stride,
        "scales": tuple(scales),
        "flip": flip,
    }
    whole = views == {"window": None, "stride": None, "scales": (1.0,), "flip": False}
    task: SemanticSegmentation | InstanceSegmentation
    if isinstance(data, InstanceData):
        if resize is not None or not whole or boundary:
            raise InputError(
                "resize, window, stride, scales, flip and boundary are for semantic segmentation; "
                "leave them out for instances"
            )
        network = load_model(model, task="instances")
        task = InstanceSegmentation(network, classes=data.classes)
    else:
        network = load_model(model, task="semantic")
        task = SemanticSegmentation(network, classes=data.classes, ignore_index=data.ignore_index)
        if resize is not None or not whole:
            segmenter = Segmenter(network, batch_size=window_batch, **views)
            task.segment = lambda images: segmenter.masks(images, resize=resize).ids
        if boundary:
            task.boundary = BoundaryQuality(
                data.classes, ignore_index=data.ignore_index, ratio=boundary_ratio, widths=trimap
            )
    check_classes(network, data)
    console: list[Callback] = [EvaluationProgress()] if progress else []
    trainer = make_trainer(
        {"logger": False, "enable_checkpointing": False, "callbacks": console}, **trainer_options
    )
    data.prepare_data()
    data.setup("validate" if split == "val" else "test")
    check_shares(data, split, trainer.world_size)
    run = trainer.validate if split == "val" else trainer.test
    was_training = network.training
    interruptible(lambda: run(task, datamodule=data, verbose=False))
    network.train(was_training)
    if task.scores is None:
        raise InputError(f"the {split} split holds no image")
    return task.scores


def check_evaluation(
    *,
    resize: tuple[int, int] | None,
    window: int | tuple[int, int] | None,
    stride: int | tuple[int, int] | None,
    window_batch: int,
    scales: Sequence[float],
    boundary_ratio: float,
    trimap: Sequence[int],
    **others: Any,
) -> None:
    """Raise `InputError` for options of `evaluate` out of range; nothing is opened."""
    if resize is not None and (len(resize) != 2 or min(resize) < 1):
        raise InputError(f"resize={resize}: give the longest and the shortest side in pixels")
    check_settings(window, stride, scales, window_batch)
    check_bands(boundary_ratio, trimap)
