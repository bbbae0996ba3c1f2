"""Semantic segmentation as a Lightning module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassConfusionMatrix

from fsanet.data.labelled import CompactItems
from fsanet.errors import check_range
from fsanet.files import first_process
from fsanet.metrics.boundary import BoundaryQuality
from fsanet.metrics.confusion import Scores, scores_of
from fsanet.models.tail import EncoderTail
from fsanet.progress import ConsoleProgress
from fsanet.signals import Interrupted, received
from fsanet.train.losses import SegmentationLoss, median_frequency_weights
from fsanet.train.schedule import polynomial_rate
from fsanet.train.task import SegmentationTask, check, check_choice

__all__ = ["SemanticSegmentation"]


class SemanticSegmentation(SegmentationTask):
    """Trains and evaluates a semantic segmentation network.

    Batches are (images uint8 (B, 3, H, W), labels int64 (B, H, W)). The network needs
    `normalise(images)`, `forward(images) -> logits (B, C, H, W)` and
    `forward_with_auxiliary(images) -> (logits, auxiliary logits or None)`, as `FsaNet` has them.

    OHEM and the Dice loss apply to the main logits; the auxiliary loss is always plain
    cross-entropy.

    Args:
        model: the network.
        classes: class names, one per logit.
        ignore_index: label of pixels that do not count.
        loss: "cross_entropy", or "ohem" for online hard example mining.
        ohem_threshold: OHEM keeps pixels whose true class is less probable than this.
        ohem_min_kept: OHEM keeps at least this many pixels of the global batch (all processes and
            accumulated partial batches together).
        class_weights: one weight per class, for the main and the auxiliary loss; or "balanced", see
            `fsanet.train.losses.median_frequency_weights`, from the masks of the training split.
        dice_weight: weight at which the Dice loss is added, see `fsanet.train.losses.dice_loss`.
        auxiliary_weight: weight of the auxiliary loss.
        power: exponent of the polynomial decay of the learning rate.
        min_lr: learning rate at the end.
        freeze_batchnorm: batch norms to keep in evaluation mode while training (running statistics
            are used and not updated; weight and bias still learn): "none", "encoder" or "all".
        **options: see `SegmentationTask`.

    Attributes:
        segment: replaces the network in evaluation, for instance by a sliding window: images
            (B, 3, H, W) -> class ids (B, H, W).
        boundary: set to also measure quality near edges.
        tail: set to train on cached features, which batches then hold in place of the images.

    Raises:
        InputError: an option is out of range, or the loss becomes nan or infinite.
    """

    monitor = "val/miou"
    headlines = ("miou",)
    scores: Scores | None

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        ignore_index: int = 255,
        loss: Literal["cross_entropy", "ohem"] = "cross_entropy",
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        class_weights: list[float] | Literal["balanced"] | None = None,
        dice_weight: float = 0.0,
        auxiliary_weight: float = 0.4,
        power: float = 0.9,
        min_lr: float = 0.0,
        freeze_batchnorm: Literal["none", "encoder", "all"] = "none",
        **options: Any,
    ) -> None:
        super().__init__(model, classes=classes, **options)
        check_choice("loss", loss, ("cross_entropy", "ohem"))
        check_choice("freeze_batchnorm", freeze_batchnorm, ("none", "encoder", "all"))
        check(0 <= min_lr <= self.lr, f"min_lr={min_lr}: give 0 <= min_lr <= lr ({self.lr})")
        check_range("power", power, 0.0, 1e3, above=True)
        check_range("auxiliary_weight", auxiliary_weight, 0.0, 1e6)
        if isinstance(class_weights, str):
            check_choice("class_weights", class_weights, ("balanced",))
        self.balanced = class_weights == "balanced"
        weights = None if isinstance(class_weights, str) else class_weights
        check(
            weights is None or len(weights) == len(classes),
            f"class_weights holds {len(weights or ())} numbers for {len(classes)} classes",
        )
        check(
            freeze_batchnorm != "encoder" or hasattr(model, "encoder"),
            "freeze_batchnorm='encoder': the model has no attribute 'encoder'",
        )
        self.loss = SegmentationLoss(
            ignore_index=ignore_index,
            ohem=loss == "ohem",
            threshold=ohem_threshold,
            min_kept=ohem_min_kept,
            class_weights=weights,
            dice_weight=dice_weight,
        )
        self.auxiliary_loss = SegmentationLoss(ignore_index=ignore_index, class_weights=weights)
        self.ohem_min_kept = ohem_min_kept
        self.auxiliary_weight = auxiliary_weight
        self.power = power
        self.min_lr = min_lr
        self.freeze_batchnorm = freeze_batchnorm
        # The data set has checked its labels; checking them again costs a device sync per batch.
        self.confusion = MulticlassConfusionMatrix(
            len(self.classes), ignore_index=ignore_index, validate_args=False
        )
        self.boundary: BoundaryQuality | None = None
        self.segment: Callable[[Tensor], Tensor] | None = None
        self.tail: EncoderTail | None = None

    def rate_factor(self, step: int, total: int, base: float) -> float:
        """Linear warm-up, then polynomial decay to the same minimum in all parameter groups."""
        rate = polynomial_rate(
            step,
            base=base,
            total_steps=total,
            power=self.power,
            minimum=min(self.min_lr, base),
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )
        return rate / base

    def frozen_norms(self) -> Iterable[nn.Module]:
        if self.freeze_batchnorm == "none":
            return []
        part = self.model if self.freeze_batchnorm == "all" else self.model.encoder
        return [module for module in part.modules() if isinstance(module, _BatchNorm)]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        # OHEM's minimum is divided among the partial batches, rounded up.
        self.loss.min_kept = -(-self.ohem_min_kept // self.trainer.accumulate_grad_batches)
        if self.balanced and self.loss.class_weights is None:  # else it resumes with them
            self._set_class_weights(self._balanced_weights())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.balanced:
            checkpoint["class_weights"] = self.loss.class_weights

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.balanced and "class_weights" in checkpoint:
            self._set_class_weights(checkpoint["class_weights"])

    def _set_class_weights(self, weights: Tensor) -> None:
        self.loss.class_weights = self.auxiliary_loss.class_weights = weights.to(self.device)

    def _balanced_weights(self) -> Tensor:
        """Balanced weights (C,) from the training masks, which all processes share in reading."""
        trainer: Any = self.trainer
        items = CompactItems(trainer.datamodule.dataset("train"))
        mine = range(trainer.global_rank, len(items), trainer.world_size)
        counts = torch.zeros(2, len(self.classes), dtype=torch.int64)
        with ConsoleProgress("masks", shown=first_process()) as progress:
            task = progress.add_task("class frequencies", total=len(mine))
            for index in mine:
                ids = torch.as_tensor(items[index][1]).flatten()
                pixels = torch.bincount(ids[ids != self.loss.ignore_index], minlength=256)
                pixels = pixels[: len(self.classes)]  # (C,)
                counts += torch.stack([pixels, (pixels > 0) * pixels.sum()])
                progress.update(task, advance=1)
                number = received()
                if number is not None:
                    raise Interrupted(number)
        counts = trainer.strategy.reduce(counts.to(self.device), reduce_op="sum").cpu()
        return median_frequency_weights(*counts)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch  # (B, 3, H, W), (B, H, W)
        if self.tail is None:
            logits, auxiliary = self.model.forward_with_auxiliary(self.model.normalise(images))
        else:
            features = self.tail(self.model, self.tail.unpack(images, *labels.shape[1:]))
            logits, auxiliary = self.model.forward_with_auxiliary(labels[:, None], features)
        loss, value = self.loss(logits, labels)
        if auxiliary is not None and self.auxiliary_weight > 0:
            auxiliary_loss, auxiliary_value = self.auxiliary_loss(auxiliary, labels)
            loss = loss + self.auxiliary_weight * auxiliary_loss
            value = value + self.auxiliary_weight * auxiliary_value
        self.log_loss(value, len(images))
        return loss

    def count(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        if self.segment is not None:
            predictions = self.segment(images).to(images.device).long()
        else:
            network = self.network
            predictions = network(network.normalise(images)).argmax(1)  # (B, H, W)
        self.confusion.update(predictions, labels)
        if self.boundary is not None:
            self.boundary.update(predictions, labels)

    def compute_scores(self) -> tuple[Scores, Mapping[str, float]]:
        scores = scores_of(self.confusion.compute(), self.classes)
        self.confusion.reset()
        if self.boundary is not None:
            scores = dataclasses.replace(scores, boundary=self.boundary.scores())
            self.boundary.reset()
        per_class = {f"iou/{n}": v for n, v in zip(self.classes, scores.iou, strict=True)}
        logged = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
        return scores, logged | per_class
