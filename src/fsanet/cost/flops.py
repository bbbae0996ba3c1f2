"""FLOPs of a call, counted by PyTorch while it runs.

Convention: 2 FLOPs per multiply-add. Matrix products, convolutions and attention are counted;
element-wise work, sums, norms, softmax and FFTs are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops", "count_parameters", "flop_counter"]


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of everything that ``run()`` calls.

    On the meta device the count is the same, and nothing is computed.

    >>> a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    >>> count_flops(lambda: a @ b)
    120
    """
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def flop_counter() -> FlopCounterMode:
    """PyTorch's FLOP counter, extended by the operators of this library that it does not know."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports Triton: 87 MiB

    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN)


def count_parameters(module: nn.Module) -> int:
    """Number of values in the module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _product_flops(
    residual: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object
) -> int:
    """FLOPs of ``residual += left @ right`` with shapes (..., m, j) and (..., j, n)."""
    return 2 * math.prod(left) * right[-1]


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """FLOPs of both attention products with shapes (B, heads, N, d), (..., M, d), (..., M, e)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_UNKNOWN: dict[Any, Any] = {
    # PyTorch's counter knows these products only where they write to new memory,
    torch.ops.aten.addmm_: _product_flops,
    torch.ops.aten.baddbmm_: _product_flops,
    # and in torch 2.11 it does not know fused attention on a CPU.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
