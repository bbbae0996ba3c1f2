"""Importing other libraries without what they load and prediction never calls."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

__all__ = ["import_without_compiler"]

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def import_without_compiler(name: str) -> Any:
    """Import timm, or a module of torchvision, without the code of ``torch.compile``.

    That is 2 of 4 seconds and 190 MiB, and wanted by two lines: torchvision's roi_align asks
    whether a device can compile, timm's naflexvit marks a function as not to be compiled. Both do
    so here without it; ``torch.compile`` is imported when it is used.
    """
    if any(module in sys.modules for module in _COMPILER):
        return importlib.import_module(name)
    try:
        with _compiler_replaced():
            return importlib.import_module(name)
    except (ImportError, AttributeError):  # another version, which wants more of it
        return importlib.import_module(name)


@contextmanager
def _compiler_replaced() -> Iterator[None]:
    for module in _COMPILER:
        replacement: Any = ModuleType(module)
        replacement.is_compile_supported = _is_compile_supported
        sys.modules[module] = replacement
    compiler: Any = torch.compiler
    disable, compiler.disable = compiler.disable, _disable
    try:
        yield
    finally:
        compiler.disable = disable
        for module in _COMPILER:
            del sys.modules[module]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _disable(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """As `torch.compiler.disable`, of which the compiler only reads the mark."""
    if function is None:
        return _disable
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function
