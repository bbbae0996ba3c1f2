"""Learning rates by optimiser step, and the parameter groups of optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["milestone_factor", "parameter_groups", "polynomial_rate"]


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
    """Learning rate with linear warm-up and polynomial decay.

    The warm-up rises linearly from `warmup_ratio * base` at step 0 to `base` at `warmup_steps`.
    Then the rate is `minimum + (base - minimum) * (1 - p) ** power`, where p goes from 0 at the
    end of the warm-up to 1 at `total_steps`. From there on it is `minimum`.

    Example:
        >>> [round(polynomial_rate(t, base=1.0, total_steps=4, power=1.0), 2) for t in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return base * _warmup(step, warmup_steps, warmup_ratio)
    remaining = max(total_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / remaining, 1.0)
    return minimum + (base - minimum) * (1.0 - progress) ** power


def milestone_factor(
    step: int,
    *,
    total_steps: int,
    milestones: Sequence[float],
    decay: float = 0.1,
    warmup_steps: int = 0,
    warmup_ratio: float = 1e-3,
) -> float:
    """Factor on the learning rate: linear warm-up, times `decay` from each milestone on.

    Args:
        milestones: fractions of `total_steps`.

    Example:
        >>> [milestone_factor(t, total_steps=4, milestones=(0.5,)) for t in range(4)]
        [1.0, 1.0, 0.1, 0.1]
    """
    factor = decay ** sum(step >= share * total_steps for share in milestones)
    if step < warmup_steps:
        factor *= _warmup(step, warmup_steps, warmup_ratio)
    return factor


def _warmup(step: int, steps: int, ratio: float) -> float:
    return ratio + (1.0 - ratio) * step / steps


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    head_lr_multiplier: float = 1.0,
    encoder_lr_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    stages: Sequence[Sequence[nn.Parameter]] = (),
    decay_norms: bool = True,
    encoder_prefixes: Sequence[str] = ("encoder.",),
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and weight decay; no group is empty.

    Args:
        head_lr_multiplier: factor on `lr` for parameters outside the encoder.
        encoder_lr_multiplier: factor on `lr` for parameters of the encoder.
        layer_decay: further factor for each stage from the head on, as in timm: once for the last
            stage of the encoder, twice for the one before it, ...
        stages: parameters of the encoder by stage, for `layer_decay`.
        decay_norms: False exempts norms, biases, and everything else with at most one axis longer
            than 1 (gates, learned output biases) from weight decay.
        encoder_prefixes: a parameter whose name starts with one of these belongs to the encoder.

    Returns:
        Groups for a `torch.optim` optimiser; "name" says what a group holds.
    """
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    stage_of = {p: number for number, stage in enumerate(stages, 1) for p in stage}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head = not name.startswith(tuple(encoder_prefixes))
        vector = sum(size > 1 for size in parameter.shape) <= 1 and parameter.ndim != 4
        exempt = not decay_norms and (vector or name.rsplit(".", 1)[-1] == "bias")
        stage = 0 if head else stage_of.get(parameter, 0)
        groups.setdefault((head, stage, exempt), []).append(parameter)
    result = []
    for (head, stage, exempt), parameters in sorted(groups.items(), key=lambda item: item[0]):
        depth = len(stages) + 1 - stage if stage else 0  # stages from the head on
        factor = head_lr_multiplier if head else encoder_lr_multiplier * layer_decay**depth
        name = "head" if head else f"encoder stage {stage}" if stage else "encoder"
        result.append(
            {
                "name": name + (" without decay" if exempt else ""),
                "params": parameters,
                "lr": lr * factor,
                "weight_decay": 0.0 if exempt else weight_decay,
            }
        )
    return result
