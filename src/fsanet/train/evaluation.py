"""Evaluation of a trained network on a split, as papers publish it.

Every way of testing scores at the size of the labels: images may be resized, cut into windows,
looked at in several scales and mirrored, but what comes out is brought back to the mask's pixels,
and all pixels of the split go into one confusion matrix.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.data.batches import SegmentationData
from fsanet.errors import InputError
from fsanet.metrics.boundary import BoundaryQuality
from fsanet.metrics.scores import Scores
from fsanet.models.segmenter import Segmenter
from fsanet.train.semantic import SemanticSegmentation
from fsanet.train.trainer import check_classes, check_shares, interruptible, make_trainer

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: SegmentationData,
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
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true",
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> Scores:
    """Scores of a model on a split, from one confusion matrix over all of it.

    Args:
        model: a network, a run folder, or a folder written by `save_pretrained`.
        data: gives the images; its `ignore_index` labels do not count.
        split: "val" or "test".
        resize: enlarge or shrink each image first, its shape kept, until its longer side is at
            most the first and its shorter one at most the second number: (2049, 1025) and
            (2048, 512) are published test sizes. Scored at the labels' size all the same.
        window: predict by a sliding window of this size, or (height, width); None: whole image.
        stride: steps of that window; two thirds of it by default.
        window_batch: windows in one forward pass.
        scales: predict at these scales, and average.
        flip: average with the prediction of the mirrored image.
        boundary: boundary IoU and trimap mIoU, too; see `fsanet.metrics.boundary`.
        boundary_ratio: width of the band of boundary IoU, as a share of the image's diagonal.
        trimap: widths of the trimaps, in pixels.
        precision: of the arithmetic.
        accelerator: "cpu", "gpu", or "auto".
        devices: processes per node, or "auto".
        num_nodes: machines.
        strategy: how processes work together.
        progress: show a progress bar on a terminal, and a line now and then elsewhere.

    Raises:
        InputError: the folder holds no model, the model has other classes than the data, an
            option is out of its range.
    """
    network = load_model(model, task="semantic")
    check_classes(network, data)
    edges = None
    if boundary:
        edges = BoundaryQuality(
            data.classes,
            ignore_index=data.ignore_index,
            ratio=boundary_ratio,
            widths=tuple(trimap),
        )
    task = _Evaluation(network, edges, classes=data.classes, ignore_index=data.ignore_index)
    if resize is not None and (len(resize) != 2 or min(resize) < 1):
        raise InputError(
            f"resize {tuple(resize)}: give the longest and the shortest side in pixels"
        )
    if resize is not None or window is not None or tuple(scales) != (1.0,) or flip:
        task.segment = _segmenter(
            network,
            resize,
            scales=scales,
            window=window,
            stride=stride,
            flip=flip,
            batch_size=window_batch,
        )
    elif stride is not None:
        raise InputError("stride without window: give both, or none for whole images")
    trainer = make_trainer(
        Path.cwd(),
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        callbacks=_console(progress),
    )
    data.prepare_data()
    data.setup("validate" if split == "val" else "test")
    check_shares(data, split, trainer.world_size)
    run = trainer.validate if split == "val" else trainer.test
    was_training = network.training
    interruptible(trainer, lambda: run(task, datamodule=data, verbose=False))
    network.train(was_training)
    if task.scores is None:
        raise InputError(f"the {split} split holds no image")
    return task.scores


def _segmenter(
    network: nn.Module, resize: tuple[int, int] | None, **options: Any
) -> Callable[[Tensor], Tensor]:
    """Images uint8 (B, 3, H, W) -> class ids (B, H, W), by prediction in one or several views."""
    segmenter = Segmenter(network, **options)

    def segment(images: Tensor) -> Tensor:
        sides = images.shape[-2:]
        scale = 1.0 if resize is None else min(resize[0] / max(sides), resize[1] / min(sides))
        return segmenter.masks(images, scale=scale)[0]

    return segment


class _Evaluation(SemanticSegmentation):
    """The evaluation half of the task, with quality near edges where it is asked for."""

    def __init__(self, model: nn.Module, edges: BoundaryQuality | None, **options: Any) -> None:
        super().__init__(model, **options)
        self.edges = edges

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Counts one batch, predicted once."""
        images, labels = batch
        predictions = self.predict_labels(images)
        self.confusion.update(predictions, labels)
        if self.edges is not None:
            self.edges.update(predictions, labels)

    def _finish_pass(self, stage: str, *, progress: bool) -> None:
        super()._finish_pass(stage, progress=progress)
        if self.edges is not None and self.scores is not None:
            self.scores = dataclasses.replace(self.scores, boundary=self.edges.scores())
            self.edges.reset()


def _console(progress: bool) -> list[Callback]:
    if not progress:
        return []
    return [RichProgressBar()] if sys.stdout.isatty() else [_Lines()]


class _Lines(Callback):
    """A line every half minute on stderr, for consoles on which a bar cannot move."""

    EVERY = 30.0  # seconds

    def __init__(self) -> None:
        self._start = self._told = time.perf_counter()
        self._images = 0

    def on_validation_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._start = self._told = time.perf_counter()
        self._images = 0

    def on_test_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, len(batch[0]), batch_idx + 1, trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(trainer, len(batch[0]), batch_idx + 1, trainer.num_test_batches)

    def _count(self, trainer: lightning.Trainer, images: int, done: int, batches: Any) -> None:
        self._images += images * trainer.world_size
        now = time.perf_counter()
        if now - self._told < self.EVERY or not trainer.is_global_zero:
            return
        self._told = now
        total = int(sum(batches) if isinstance(batches, list) else batches)
        left = (now - self._start) / done * (total - done)
        print(
            f"{done}/{total} batches · {self._images / (now - self._start):.2f} images/s · "
            f"{left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )
