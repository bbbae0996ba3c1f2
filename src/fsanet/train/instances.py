"""Instance segmentation as a Lightning module: torchvision's losses in, box and mask AP out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from fsanet.errors import InputError
from fsanet.metrics.average_precision import ApScores, AveragePrecision
from fsanet.train.losses import global_mean
from fsanet.train.schedule import parameter_groups

__all__ = ["InstanceSegmentation", "detect"]


class InstanceSegmentation(lightning.LightningModule):
    """Trains and evaluates an instance segmentation network.

    Batches are those of `fsanet.data.InstanceData`. The network has the interface of
    torchvision's detectors: images as a list of floats (3, H, W) in 0..1; with targets, in
    training, a dict of losses; else a list of dicts of "boxes", "labels", "scores", "masks".

    The loss is the sum of torchvision's (RPN objectness and boxes; classes, boxes, masks), each
    logged by its name. The defaults are torchvision's recipe for 16 images a step; the rate is
    proportional to that number.

    Args:
        model: the network.
        classes: class names; label 1 is the first.
        optimizer: "sgd" or "adamw".
        lr: learning rate after the warm-up.
        momentum: of SGD.
        weight_decay: of the optimiser (decoupled for AdamW).
        decay_norms: False takes weight decay off norms, biases and gates.
        head_lr_multiplier: everything but the body of the backbone learns at this times `lr`.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_ratio: the warm-up starts at this times `lr`.
        milestones: shares of all steps after which the rate falls (torchvision: epochs 16 and 22
            of 26).
        decay: factor of each fall.
        freeze_batchnorm: keep the backbone's batch norms in evaluation mode while training, but
            for those in attention; batches of a detector are small.

    Raises:
        InputError: an option is out of its range, or the loss becomes nan or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_norms: bool = True,
        head_lr_multiplier: float = 1.0,
        warmup_steps: int = 1000,
        warmup_ratio: float = 1e-3,
        milestones: Sequence[float] = (16 / 26, 22 / 26),
        decay: float = 0.1,
        freeze_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        checks = {
            f"optimizer={optimizer!r}: give sgd or adamw": optimizer in ("sgd", "adamw"),
            f"lr={lr}: give a learning rate above 0": lr > 0,
            f"momentum={momentum}: give 0 <= momentum < 1": 0 <= momentum < 1,
            f"weight_decay={weight_decay} is negative": weight_decay >= 0,
            f"head_lr_multiplier={head_lr_multiplier}: give more than 0": head_lr_multiplier > 0,
            f"warmup_steps={warmup_steps} is negative": warmup_steps >= 0,
            f"warmup_ratio={warmup_ratio}: give 0..1": 0 <= warmup_ratio <= 1,
            f"decay={decay}: give a factor of 0..1": 0 <= decay <= 1,
            f"milestones={list(milestones)}: give rising shares of 0..1, such as 0.6 and 0.85": (
                all(0 < share < 1 for share in milestones)
                and list(milestones) == sorted(milestones)
            ),
        }
        for message, fits in checks.items():
            if not fits:
                raise InputError(message)
        self.model = model
        self.classes = tuple(classes)
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.decay_norms = decay_norms
        self.head_lr_multiplier = head_lr_multiplier
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.milestones = tuple(milestones)
        self.decay = decay
        self.freeze_batchnorm = freeze_batchnorm
        self.precision_of = AveragePrecision(self.classes)
        self.scores: ApScores | None = None
        self.total_steps: int | None = None  # None: as many as the trainer is going to do

    # --- training -----------------------------------------------------------------------

    def train(self, mode: bool = True) -> InstanceSegmentation:
        """As `nn.Module.train`, but batch norms that are frozen stay in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_batchnorm:
            body = self.model.backbone.body  # type: ignore[union-attr]
            for name, module in body.named_modules():  # type: ignore[union-attr]
                if isinstance(module, _BatchNorm) and ".attention." not in f".{name}.":
                    module.eval()
        return self

    def on_fit_start(self) -> None:
        """Puts frozen norms in their mode."""
        self.train()

    def training_step(self, batch: tuple[list[Tensor], list[Any]], batch_index: int) -> Tensor:
        """Sum of the losses of one batch."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(as_floats(images), targets)
        loss = torch.stack(list(losses.values())).sum()
        one = loss.new_ones(())
        values = {name: global_mean(part.detach(), one)[1] for name, part in losses.items()}
        value = torch.stack(list(values.values())).sum()
        # The value is the same on all processes: they stop together, none waits for ever.
        if not torch.isfinite(value):
            raise InputError(
                f"the loss became {value.item()} at optimiser step {self.global_step}: try a "
                "smaller task.lr, more task.warmup_steps, gradient_clip, or precision 32-true"
            )
        count = len(images)
        self.log("train/loss", value, prog_bar=True, batch_size=count)
        for name, part in values.items():
            self.log(f"train/{name}", part, batch_size=count)
        rates = self.optimizers().param_groups  # type: ignore[union-attr]
        self.log("train/lr", rates[0]["lr"], prog_bar=True, batch_size=count)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser, and its schedule over `self.total_steps` optimiser steps."""
        groups = parameter_groups(
            self.model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            head_lr_multiplier=self.head_lr_multiplier,
            decay_norms=self.decay_norms,
            encoder_prefixes=("backbone.body.",),
        )
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = self.total_steps or int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: self.rate_factor(step, total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }

    def rate_factor(self, step: int, total: int) -> float:
        """Share of `lr` at an optimiser step: linear warm-up, then falls at the milestones."""
        falls = sum(step >= share * total for share in self.milestones)
        factor = self.decay**falls
        if step < self.warmup_steps:
            factor *= self.warmup_ratio + (1 - self.warmup_ratio) * step / self.warmup_steps
        return factor

    # --- evaluation ---------------------------------------------------------------------

    def validation_step(self, batch: tuple[list[Tensor], list[Any]], batch_index: int) -> None:
        """Counts the detections of one batch."""
        images, targets = batch
        self.precision_of.update(detect(self.model, images), targets)

    def on_validation_epoch_start(self) -> None:
        self.precision_of.reset()

    def on_validation_epoch_end(self) -> None:
        """Scores of the pass, over all processes, in `self.scores` and in the logs."""
        self._finish_pass("val")

    def test_step(self, batch: tuple[list[Tensor], list[Any]], batch_index: int) -> None:
        """Counts the detections of one batch."""
        self.validation_step(batch, batch_index)

    def on_test_epoch_start(self) -> None:
        self.precision_of.reset()

    def on_test_epoch_end(self) -> None:
        """Scores of the pass, over all processes, in `self.scores` and in the logs."""
        self._finish_pass("test")

    def _finish_pass(self, stage: str) -> None:
        self.scores = self.precision_of.compute()
        self.precision_of.reset()
        if self.scores is None:
            return
        for kind, values in (("box", self.scores.box), ("mask", self.scores.mask)):
            for name, value in values.items():
                self.log(f"{stage}/{kind}_{name}", value, prog_bar=name == "AP", batch_size=1)


def as_floats(images: Sequence[Tensor]) -> list[Tensor]:
    """uint8 images (3, H, W) as floats of 0..1; floats pass."""
    return [i if i.is_floating_point() else i.float() / 255 for i in images]


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Detections of each image, sorted by falling score.

    Args:
        model: as in `InstanceSegmentation`, in evaluation mode.
        images: uint8 or floats in 0..1, (3, H, W) each.

    Returns:
        "boxes" float32 (N, 4) in pixels, "labels" int64 (N,), "scores" float32 (N,) and "masks"
        bool (N, H, W): torchvision's probabilities from one half on.
    """
    found = []
    for one in model(as_floats(images)):
        order = one["scores"].argsort(descending=True, stable=True)
        found.append(
            {
                "boxes": one["boxes"][order],
                "labels": one["labels"][order],
                "scores": one["scores"][order],
                "masks": one["masks"][order, 0] >= 0.5,
            }
        )
    return found
