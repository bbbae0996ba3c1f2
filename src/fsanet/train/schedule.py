"""Optimisers' parameter groups and learning-rate schedules, counted in optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def polynomial_rate(
    step: int,
    *,
    base: float,
    total_steps: int,
    power: float = 0.9,
    minimum: float = 0.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 1e-3,
) -> float:
    """Learning rate of one optimiser step.

    Warm-up: linear from `warmup_ratio * base` at step 0 to `base` at step `warmup_steps`.
    Then `minimum + (base - minimum) * (1 - p) ** power`, where p runs from 0 at the end of the
    warm-up to 1 at `total_steps`. From `total_steps` on, `minimum`.

    Example:
        >>> [round(polynomial_rate(t, base=1.0, total_steps=4, power=1.0), 2) for t in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return base * (warmup_ratio + (1.0 - warmup_ratio) * step / warmup_steps)
    remaining = max(total_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / remaining, 1.0)
    return minimum + (base - minimum) * (1.0 - progress) ** power


def polynomial_schedule(
    optimizer: Optimizer,
    *,
    total_steps: int,
    power: float = 0.9,
    minimum: float = 0.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 1e-3,
) -> LambdaLR:
    """`polynomial_rate` for every parameter group, from the group's own base rate.

    The minimum is the same absolute rate in all groups. Call `step()` once per optimiser step.
    """

    def factor_of(base: float) -> Callable[[int], float]:
        # LambdaLR multiplies the base rate; a group at rate 0 stays there.
        return lambda step: (
            polynomial_rate(
                step,
                base=base,
                total_steps=total_steps,
                power=power,
                minimum=min(minimum, base),
                warmup_steps=warmup_steps,
                warmup_ratio=warmup_ratio,
            )
            / base
            if base > 0
            else 0.0
        )

    return LambdaLR(optimizer, [factor_of(group["lr"]) for group in optimizer.param_groups])


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    head_lr_multiplier: float = 1.0,
    decay_norms: bool = True,
    encoder_prefixes: Sequence[str] = ("encoder.",),
) -> list[dict[str, Any]]:
    """Trainable parameters, split by learning rate and by weight decay; empty groups left out.

    Args:
        head_lr_multiplier: parameters outside the encoder get this times `lr`.
        decay_norms: False takes weight decay off norms, biases, and everything else with at
            most one axis longer than 1 (gates, learned output biases).
        encoder_prefixes: parameters whose name starts with one of these are the encoder's.

    Returns:
        Groups for a `torch.optim` optimiser; "name" says what a group holds.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head = not name.startswith(tuple(encoder_prefixes))
        vector = sum(size > 1 for size in parameter.shape) <= 1 and parameter.ndim != 4
        spared = not decay_norms and (vector or name.rsplit(".", 1)[-1] == "bias")
        groups.setdefault((head, spared), []).append(parameter)
    return [
        {
            "name": ("head" if head else "encoder") + (" without decay" if spared else ""),
            "params": parameters,
            "lr": lr * (head_lr_multiplier if head else 1.0),
            "weight_decay": 0.0 if spared else weight_decay,
        }
        for (head, spared), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
