"""Instance segmentation as a Lightning module: torchvision's losses, COCO's average precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsanet.errors import check_range
from fsanet.metrics.average_precision import ApScores, AveragePrecision
from fsanet.models.mask_rcnn import as_floats
from fsanet.train.losses import global_mean
from fsanet.train.schedule import milestone_factor
from fsanet.train.task import SegmentationTask, check

__all__ = ["InstanceSegmentation"]


class InstanceSegmentation(SegmentationTask):
    """Trains and evaluates an instance segmentation network.

    Batches are those of `InstanceData`. The network is a `MaskRcnnFsa`, or has its interface: in
    training, images as a list of floats (3, H, W) in 0..1 and targets give a dict of losses;
    `detect(images)` gives detections.

    The loss is the sum of torchvision's losses (RPN objectness and boxes; classes, boxes, masks),
    each logged under its name. The defaults are torchvision's recipe for 16 images per step; the
    learning rate is proportional to that number.

    Args:
        model: the network.
        classes: class names; label 1 is the first.
        lr: learning rate after the warm-up.
        weight_decay: of the optimiser (decoupled for AdamW).
        warmup_steps: optimiser steps of linear warm-up.
        milestones: fractions of all steps at which the learning rate drops (torchvision: epochs
            16 and 22 of 26).
        decay: factor of each drop.
        freeze_batchnorm: keep the backbone's batch norms in evaluation mode while training, except
            for those of attention, because batches of a detector are small.
        **options: see `SegmentationTask`.

    Raises:
        InputError: an option is out of range, or the loss becomes nan or infinite.
    """

    monitor = "val/mask_AP"
    headlines = ("mask_AP", "box_AP")
    scores: ApScores | None

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        lr: float = 0.02,
        weight_decay: float = 1e-4,
        warmup_steps: int = 1000,
        milestones: Sequence[float] = (16 / 26, 22 / 26),
        decay: float = 0.1,
        freeze_batchnorm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            classes=classes,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            **options,
        )
        check_range("decay", decay, 0.0, 1.0)
        rising = list(milestones) == sorted(milestones)
        check(
            rising and all(0 < share < 1 for share in milestones),
            f"milestones={list(milestones)}: give rising fractions of 0..1, such as 0.6 and 0.85",
        )
        self.milestones = tuple(milestones)
        self.decay = decay
        self.freeze_batchnorm = freeze_batchnorm
        self.average_precision = AveragePrecision(self.classes)

    def rate_factor(self, step: int, total: int, base: float) -> float:
        """Linear warm-up, with a drop at each milestone."""
        return milestone_factor(
            step,
            total_steps=total,
            milestones=self.milestones,
            decay=self.decay,
            warmup_steps=self.warmup_steps,
            warmup_ratio=self.warmup_ratio,
        )

    def frozen_norms(self) -> Iterable[nn.Module]:
        return [
            module
            for name, module in self.model.backbone.body.named_modules()
            if self.freeze_batchnorm
            and isinstance(module, _BatchNorm)
            and ".attention." not in f".{name}."
        ]

    def training_step(self, batch: tuple[list[Tensor], list[Any]], batch_index: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(as_floats(images), targets)
        loss = torch.stack(list(losses.values())).sum()
        one = loss.new_ones(())
        values = {name: global_mean(part.detach(), one)[1] for name, part in losses.items()}
        self.log_loss(torch.stack(list(values.values())).sum(), len(images), **values)
        return loss

    def count(self, batch: tuple[list[Tensor], list[Any]]) -> None:
        images, targets = batch
        self.average_precision.update(self.network.detect(images), targets)

    def compute_scores(self) -> tuple[ApScores | None, Mapping[str, float]]:
        scores = self.average_precision.compute()
        self.average_precision.reset()
        if scores is None:
            return None, {}
        kinds = {"box": scores.box, "mask": scores.mask}
        return scores, {
            f"{kind}_{name}": value
            for kind, found in kinds.items()
            for name, value in found.items()
        }
