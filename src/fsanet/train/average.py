"""An exponential moving average of a network's weights and batch statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["moving_average"]


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Average a network over its optimiser steps, batch statistics included.

    Not torch's `get_ema_multi_avg_fn`: with a constant decay, the first weights would dominate a
    short training (0.999 ** 300 = 0.74), and it scales integer buffers, such as the number of
    batches that a batch norm has seen, to 0. So the decay of update n is at most
    (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, and integers are copied.

    Returns:
        Its ``module`` is the average, and trains no parameter.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return averaged.requires_grad_(False)
