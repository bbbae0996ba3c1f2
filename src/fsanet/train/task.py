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
from torch.optim.swa_utils import AveragedModel

from fsanet.errors import InputError, check_range
from fsanet.models.stages import encoder_stages, freeze_stages
from fsanet.train.average import moving_average
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
        encoder_lr_multiplier: factor on the learning rate of the encoder.
        layer_decay: further factor per stage of the encoder, counted from the head, as in timm:
            0.5 halves the rate of the last stage, quarters that of the one before it, ...
        freeze: how many stages of the encoder do not train, or "encoder" for all. Their batch
            norms and dropout stay in evaluation mode; nothing is computed for their gradients.
        ema: decay of an exponential moving average of all weights and batch statistics, such as
            0.999. Evaluation, the best weights and the saved network then use the average. It
            forgets faster at first: the decay of update n is at most (1 + n) / (10 + n).
        channels_last: keep the network in channels-last memory format, in which convolutions are
            often faster.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_ratio: the warm-up starts at this fraction of `lr`.

    Attributes:
        monitor: logged metric by which the best weights are chosen; the larger, the better.
        headlines: metrics shown on the progress bar.
        frozen: modules that hold nothing but frozen parameters.
        frozen_stages: `freeze`.
        average: the moving average of the network, None without `ema`.
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
        encoder_lr_multiplier: float = 1.0,
        layer_decay: float = 1.0,
        freeze: int | Literal["encoder"] = 0,
        ema: float | None = None,
        channels_last: bool = False,
        warmup_steps: int = 0,
        warmup_ratio: float = 1e-3,
    ) -> None:
        super().__init__()
        check_choice("optimizer", optimizer, ("sgd", "adamw"))
        check_range("lr", lr, 0.0, 1e3, above=True)
        check(0 <= momentum < 1, f"momentum={momentum}: give 0 <= momentum < 1")
        check_range("weight_decay", weight_decay, 0.0, 1e3)
        check_range("head_lr_multiplier", head_lr_multiplier, 0.0, 1e6, above=True)
        check_range("encoder_lr_multiplier", encoder_lr_multiplier, 0.0, 1e6, above=True)
        check_range("layer_decay", layer_decay, 0.0, 1.0, above=True)
        check(ema is None or 0 < ema < 1, f"ema={ema}: give a decay above 0 and below 1")
        check_range("warmup_steps", warmup_steps, 0, 10**9)
        check_range("warmup_ratio", warmup_ratio, 0.0, 1.0)
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen_stages = freeze
        self.frozen = freeze_stages(model, freeze)
        self.model: Any = model
        self.average: AveragedModel | None = None
        if ema is not None:
            self.average = moving_average(model, ema)
        self.classes = tuple(classes)
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.decay_norms = decay_norms
        self.head_lr_multiplier = head_lr_multiplier
        self.encoder_lr_multiplier = encoder_lr_multiplier
        self.layer_decay = layer_decay
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.scores: Any = None
        self.total_steps: int | None = None

    @property
    def network(self) -> Any:
        """What is evaluated and saved: the moving average, or the network itself without one."""
        return self.model if self.average is None else self.average.module

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
        """As `nn.Module.train`, except that what is frozen stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in (*self.frozen, *self.frozen_norms()):
                module.eval()
        return self

    def on_fit_start(self) -> None:
        self.train()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As in Lightning; the moving average takes in the new weights."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint of nothing but weights hold those of `network`."""
        if self.average is not None and "optimizer_states" not in checkpoint:
            weights = self.network.state_dict(prefix="model.")
            checkpoint["state_dict"] = weights

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
            encoder_lr_multiplier=self.encoder_lr_multiplier,
            layer_decay=self.layer_decay,
            stages=encoder_stages(self.model) if self.layer_decay != 1 else (),
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
