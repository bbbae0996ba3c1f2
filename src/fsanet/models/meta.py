"""Networks without values: on torch's meta device, in next to no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["NoRandomValues", "without_values"]

# The functions of nn.init are seen instead of the methods that they call.
_RANDOM: tuple[Callable[..., Any], ...] = (
    *(Tensor.normal_, Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
)


class NoRandomValues(TorchFunctionMode):
    """Fills no tensor without data: torch would do so in Python, and import its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM and (filled := args[0] if args else kwargs["tensor"]).is_meta:
            return filled
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Within this block, networks are built on the meta device: shapes alone."""
    with torch.device("meta"), NoRandomValues():
        yield
