"""What both tasks share: optimiser and schedule, frozen norms, and the passes of evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fsanet.errors import InputError, check_range
from fsanet.train.schedule import parameter_groups

__all__ = ["SegmentationTask", "check", "check_choice"]


class SegmentationTask(lightning.LightningModule):
    """Base of the tasks. A subclass provides the loss, the learning rate and the metric.

    Evaluation collects over the whole split and all processes. Processes exchange nothing before
    the end of the pass, so they may have different numbers of batches.

    Args:
        model: the network. Parameters whose names start with one of its ``encoder_prefixes``
            (``"encoder."`` by default) belong to the encoder.
        classes: class names.
        optimizer: "sgd" or "adamw".
        lr: base learning rate.
        momentum: momentum of SGD.
        weight_decay: weight decay (decoupled for AdamW).
        decay_norms: False exempts norms, biases and gates from weight decay.
        head_lr_multiplier: factor on the learning rate outside the encoder.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_ratio: the warm-up starts at this fraction of `lr`.

    Attributes:
        monitor: logged metric by which the best weights are chosen; the larger, the better.
        headlines: metrics shown on the progress bar.
        scores: those of the last pass of evaluation; None before the first.
        total_steps: optimiser steps of the schedule; None for as many as the trainer will do.

    Raises:
        InputError: an option is out of range, or the loss becomes nan or infinite.
    """

    monitor: str
    headlines: tuple[str, ...]

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        decay_norms: bool = True,
        head_lr_multiplier: float = 1.0,
        warmup_steps: int = 0,
        warmup_ratio: float = 1e-3,
    ) -> None:
        super().__init__()
        check_choice("optimizer", optimizer, ("sgd", "adamw"))
        check_range("lr", lr, 0.0, 1e3, above=True)
        check(0 <= momentum < 1, f"momentum={momentum}: give 0 <= momentum < 1")
        check_range("weight_decay", weight_decay, 0.0, 1e3)
        check_range("head_lr_multiplier", head_lr_multiplier, 0.0, 1e6, above=True)
        check_range("warmup_steps", warmup_steps, 0, 10**9)
        check_range("warmup_ratio", warmup_ratio, 0.0, 1.0)
        self.model: Any = model
        self.classes = tuple(classes)
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.decay_norms = decay_norms
        self.head_lr_multiplier = head_lr_multiplier
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.scores: Any = None
        self.total_steps: int | None = None

    @abstractmethod
    def rate_factor(self, step: int, total: int, base: float) -> float:
        """Factor on the base learning rate of a parameter group at an optimiser step."""

    @abstractmethod
    def frozen_norms(self) -> Iterable[nn.Module]:
        """Batch norms that stay in evaluation mode while training."""

    @abstractmethod
    def count(self, batch: Any) -> None:
        """Add one batch of evaluation."""

    @abstractmethod
    def compute_scores(self) -> tuple[Any, Mapping[str, float]]:
        """Scores of all batches over all processes, and those to log; starts a new count."""

    # --- training -----------------------------------------------------------------------

    def train(self, mode: bool = True) -> SegmentationTask:
        """As `nn.Module.train`, except that frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if mode:
            for norm in self.frozen_norms():
                norm.eval()
        return self

    def on_fit_start(self) -> None:
        self.train()

    def log_loss(self, value: Tensor, images: int, **parts: Tensor) -> None:
        """Log the loss and its parts, the same on all processes; stop if it is not finite."""
        # All processes see the same value, so they stop together and none is left waiting.
        if not torch.isfinite(value):
            raise InputError(
                f"the loss became {value.item()} at optimiser step {self.global_step}: try a "
                "smaller task.lr, more task.warmup_steps, gradient_clip, or precision 32-true"
            )
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.log("train/loss", value, prog_bar=True, batch_size=images)
        self.log("train/lr", rate, prog_bar=True, batch_size=images)
        for name, part in parts.items():
            self.log(f"train/{name}", part, batch_size=images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
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

        def factor_from(base: float) -> Callable[[int], float]:
            return lambda step: self.rate_factor(step, total, base)

        # Not PolynomialLR and LinearLR in a SequentialLR: they multiply rates step by step, which
        # drifts; PolynomialLR has no minimum; and checkpoints of earlier runs hold a LambdaLR.
        schedule = LambdaLR(optimizer, [factor_from(group["lr"]) for group in groups])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }

    # --- evaluation ---------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.count(batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        self.count(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish_pass("val")

    def on_test_epoch_end(self) -> None:
        self._finish_pass("test")

    def _finish_pass(self, stage: str) -> None:
        self.scores, logged = self.compute_scores()
        for name, value in logged.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in self.headlines, batch_size=1)


def check(condition: bool, message: str) -> None:
    """Raise `InputError` with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `InputError` unless the value is one of the choices."""
    check(value in choices, f"{name}={value!r}: give one of {', '.join(choices)}")
