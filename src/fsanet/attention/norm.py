"""Batch norm of a map of which only sums over positions are known.

Source: Parseval's theorem on DCT coefficients (docs/method.md, "What stays in coefficient space").

Legend: B batch, C channels, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsanet.errors import InputError

__all__ = ["Statistics", "batch_norm_affine", "uses_batch_statistics"]

#: Computes, when called, of a map: the mean of each image over positions, (B, C); the sum over
#: positions of the squared distance to that mean, (B, C); and N.
Statistics = Callable[[], tuple[Tensor, Tensor, int]]


def uses_batch_statistics(norm: _BatchNorm | None) -> bool:
    """Whether ``norm`` takes mean and variance from the batch rather than from running averages."""
    if norm is None:
        return False
    return norm.training or norm.running_mean is None or norm.running_var is None


def batch_norm_affine(
    norm: _BatchNorm, dtype: torch.dtype, statistics: Statistics | None = None
) -> tuple[Tensor, Tensor]:
    """The affine map per channel, ``o * scale + shift``, that ``norm`` applies to a map.

    In training mode the running averages are updated, and a ``SyncBatchNorm`` takes the statistics
    of all processes. Differentiable.

    Args:
        norm: ``BatchNorm2d`` or ``SyncBatchNorm``; only its parameters and buffers are used.
        dtype: of the computation.
        statistics: of the map; called only where ``norm`` uses statistics of the batch. They are
            centred per image, so no large mean cancels against a large mean of squares.

    Returns:
        ``scale`` and ``shift``, each ``(C,)``, of ``dtype``.

    Raises:
        InputError: one value per channel in training, as in torch's batch norm.
    """
    running_mean, running_var = norm.running_mean, norm.running_var
    if uses_batch_statistics(norm) or running_mean is None or running_var is None:
        if statistics is None:
            raise ValueError("batch norm in training mode needs the statistics of the batch")
        centre, variance = _batch_statistics(norm, *statistics())
    else:
        centre, variance = running_mean.to(dtype), running_var.to(dtype)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -centre * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    return scale, shift


def _batch_statistics(
    norm: _BatchNorm, mean: Tensor, energy: Tensor, positions: int
) -> tuple[Tensor, Tensor]:
    group = _process_group(norm)
    count = mean.new_tensor(float(mean.shape[0] * positions))
    total = mean.sum(0) * positions  # (C,)
    if group is not None:
        total, count = _all_reduce(total, group), _all_reduce(count, group)
    elif mean.shape[0] * positions == 1:
        raise InputError(
            "batch norm in training needs more than 1 value per channel; give a larger map or batch"
        )
    centre = total / count  # (C,)
    spread = energy.sum(0) + positions * (mean - centre).square().sum(0)  # (C,)
    if group is not None:
        spread = _all_reduce(spread, group)
    if norm.training:
        _update_running(norm, centre, spread / (count - 1))
    return centre, spread / count


@torch.no_grad()
def _update_running(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # cumulative average, as torch defines it
        momentum = 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(variance.detach().to(norm.running_var.dtype), momentum)


def _process_group(norm: _BatchNorm) -> dist.ProcessGroup | None:
    """The processes to reduce over, or None where the statistics are local."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


class _AllReduce(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs.

    torch's functional collectives have a gradient for it only in its latest versions; those of
    `torch.distributed.nn`, which had one before, are deprecated.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradients[0], ctx.group), None


def _all_reduce(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    total: Tensor = _AllReduce.apply(value, group)  # type: ignore[no-untyped-call]
    return total
