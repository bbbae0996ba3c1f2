"""Semantic segmentation as a Lightning module: one training step, one evaluation step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassConfusionMatrix

from fsanet.errors import InputError
from fsanet.metrics.scores import Scores, scores_of
from fsanet.train.losses import SegmentationLoss
from fsanet.train.schedule import parameter_groups, polynomial_schedule


class SemanticSegmentation(lightning.LightningModule):
    """Trains and evaluates a segmentation network.

    Batches are (images uint8 (B, 3, H, W), labels int64 (B, H, W)). The network needs
    `normalise(images)`, `forward(images) -> logits (B, C, H, W)` and
    `forward_with_auxiliary(images) -> (logits, auxiliary logits or None)`, as `FsaNet` has.

    OHEM applies to the main logits; the auxiliary loss is always plain cross-entropy.

    Evaluation gathers one confusion matrix over the whole data set and all processes; a class
    without a labelled pixel in the data set is left out of the mean (see `Scores`). Nothing
    is exchanged between processes before the end of the pass, so they may hold different
    numbers of batches.

    Args:
        model: the network.
        classes: class names, one a logit.
        ignore_index: label of pixels that do not count.
        loss: "cross_entropy", or "ohem" for online hard example mining.
        ohem_threshold: OHEM keeps pixels whose true class is less probable than this.
        ohem_min_kept: OHEM keeps at least this many pixels of the global batch (all
            processes and accumulated partial batches together).
        class_weights: one weight a class in the main and auxiliary loss.
        auxiliary_weight: weight of the auxiliary loss.
        optimizer: "sgd" or "adamw".
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: of the optimiser (decoupled for AdamW).
        decay_norms: False takes weight decay off norms, biases and gates.
        head_lr_multiplier: everything but the encoder learns at this times `lr`.
        power: exponent of the polynomial decay.
        min_lr: learning rate at the end.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_ratio: the warm-up starts at this times `lr`.
        freeze_batchnorm: batch norms kept in evaluation mode while training (running
            statistics used and left alone; weight and bias still learn): "none",
            "encoder" or "all".

    Raises:
        InputError: an option is out of its range, or the loss becomes nan or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        ignore_index: int = 255,
        loss: Literal["cross_entropy", "ohem"] = "cross_entropy",
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        class_weights: list[float] | None = None,
        auxiliary_weight: float = 0.4,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        decay_norms: bool = True,
        head_lr_multiplier: float = 1.0,
        power: float = 0.9,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
        warmup_ratio: float = 1e-3,
        freeze_batchnorm: Literal["none", "encoder", "all"] = "none",
    ) -> None:
        super().__init__()
        _check_choice("loss", loss, ("cross_entropy", "ohem"))
        _check_choice("optimizer", optimizer, ("sgd", "adamw"))
        _check_choice("freeze_batchnorm", freeze_batchnorm, ("none", "encoder", "all"))
        _check(lr > 0, f"lr={lr}: give a learning rate above 0")
        _check(0 <= min_lr <= lr, f"min_lr={min_lr}: give 0 <= min_lr <= lr ({lr})")
        _check(0 <= momentum < 1, f"momentum={momentum}: give 0 <= momentum < 1")
        _check(weight_decay >= 0, f"weight_decay={weight_decay} is negative")
        _check(warmup_steps >= 0, f"warmup_steps={warmup_steps} is negative")
        _check(0 <= warmup_ratio <= 1, f"warmup_ratio={warmup_ratio}: give 0..1")
        _check(power > 0, f"power={power}: give an exponent above 0")
        _check(auxiliary_weight >= 0, f"auxiliary_weight={auxiliary_weight} is negative")
        _check(head_lr_multiplier > 0, f"head_lr_multiplier={head_lr_multiplier}: give more than 0")
        _check(
            class_weights is None or len(class_weights) == len(classes),
            f"class_weights holds {len(class_weights or ())} numbers for {len(classes)} classes",
        )
        if freeze_batchnorm == "encoder" and not hasattr(model, "encoder"):
            raise InputError("freeze_batchnorm='encoder': the model has no attribute 'encoder'")
        self.model = model
        self.classes = tuple(classes)
        self.loss = SegmentationLoss(
            ignore_index=ignore_index,
            ohem=loss == "ohem",
            threshold=ohem_threshold,
            min_kept=ohem_min_kept,
            class_weights=class_weights,
        )
        self.auxiliary_loss = SegmentationLoss(
            ignore_index=ignore_index, class_weights=class_weights
        )
        self.ohem_min_kept = ohem_min_kept
        self.auxiliary_weight = auxiliary_weight
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.decay_norms = decay_norms
        self.head_lr_multiplier = head_lr_multiplier
        self.power = power
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.freeze_batchnorm = freeze_batchnorm
        # The data set has checked its labels; checking again costs a device sync per batch.
        self.confusion = MulticlassConfusionMatrix(
            len(self.classes), ignore_index=ignore_index, validate_args=False
        )
        self.scores: Scores | None = None
        self.total_steps: int | None = None  # None: as many as the trainer is going to do
        self.segment: Callable[[Tensor], Tensor] | None = None

    # --- training -----------------------------------------------------------------------

    def train(self, mode: bool = True) -> SemanticSegmentation:
        """As `nn.Module.train`, but batch norms that are frozen stay in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_batchnorm != "none":
            part = self.model if self.freeze_batchnorm == "all" else self.model.encoder
            for module in part.modules():  # type: ignore[union-attr]
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        """Puts frozen norms in their mode, and shares OHEM's minimum among partial batches."""
        self.train()
        share = -(-self.ohem_min_kept // self.trainer.accumulate_grad_batches)
        self.loss.min_kept = share

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch; images (B, 3, H, W), labels (B, H, W)."""
        images, labels = batch
        logits, auxiliary = self.model.forward_with_auxiliary(  # type: ignore[operator]
            self.model.normalise(images)  # type: ignore[operator]
        )  # (B, C, H, W), and the same or None
        loss, value = self.loss(logits, labels)
        if auxiliary is not None and self.auxiliary_weight > 0:
            auxiliary_loss, auxiliary_value = self.auxiliary_loss(auxiliary, labels)
            loss = loss + self.auxiliary_weight * auxiliary_loss
            value = value + self.auxiliary_weight * auxiliary_value
        # The value is the same on all processes: they stop together, none waits for ever.
        if not torch.isfinite(value):
            raise InputError(
                f"the loss became {value.item()} at optimiser step {self.global_step}: try a "
                "smaller task.lr, more task.warmup_steps, gradient_clip, or precision 32-true"
            )
        rates = self.optimizers().param_groups  # type: ignore[union-attr]
        self.log("train/loss", value, prog_bar=True)
        self.log("train/lr", rates[0]["lr"], prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and its schedule over `self.total_steps` optimiser steps."""
        groups = parameter_groups(
            self.model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            head_lr_multiplier=self.head_lr_multiplier,
            decay_norms=self.decay_norms,
            encoder_prefixes=getattr(self.model, "encoder_prefixes", ("encoder.",)),
        )
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = self.total_steps or int(self.trainer.estimated_stepping_batches)
        schedule = polynomial_schedule(
            optimizer,
            total_steps=total,
            power=self.power,
            minimum=self.min_lr,
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }

    # --- evaluation ---------------------------------------------------------------------

    def predict_labels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the data set gives them -> class ids (B, H, W) int64.

        `self.segment`, where set, does it instead: a sliding window, for instance.
        """
        if self.segment is not None:
            return self.segment(images).to(images.device).long()
        return self.model(self.model.normalise(images)).argmax(1)  # type: ignore[operator]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Counts one batch into the confusion matrix."""
        images, labels = batch
        self.confusion.update(self.predict_labels(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Scores of the pass, over all processes, in `self.scores` and in the logs."""
        self._finish_pass("val", progress=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Counts one batch into the confusion matrix."""
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        """Scores of the pass, over all processes, in `self.scores` and in the logs."""
        self._finish_pass("test", progress=False)

    def _finish_pass(self, stage: str, *, progress: bool) -> None:
        self.scores = scores_of(self.confusion.compute(), self.classes)
        self.confusion.reset()
        self.log(f"{stage}/miou", self.scores.miou, prog_bar=progress)
        self.log(f"{stage}/pixel_accuracy", self.scores.pixel_accuracy)
        for name, iou in zip(self.classes, self.scores.iou, strict=True):
            self.log(f"{stage}/iou/{name}", iou)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{name}={value!r}: give one of {', '.join(choices)}")
