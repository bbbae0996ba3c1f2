"""Importing other libraries without what they load and prediction never calls."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

__all__ = ["import_lightning", "import_timm", "import_torchvision"]

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")
_TORCHVISION = {
    "torchvision": (),
    "torchvision.models": (),
    "torchvision.models.feature_extraction": ("create_feature_extractor", "get_graph_node_names"),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
}


def import_timm() -> Any:
    """Import timm without ``torch.compile``, torchvision and timm's loaders of data.

    They are most of its time and 200 MiB, and its networks want little of them: marks for the
    compiler, constants of ``timm.data``, and of torchvision two functions that trace features and
    a class of frozen batch norms. Stand-ins have that, and load the real ones when they are used.
    """
    replacements = _replacements() if "timm" not in sys.modules else {}
    try:
        with _replaced(replacements):
            timm = importlib.import_module("timm")
    except (ImportError, AttributeError):  # another version, which wants more of them
        return importlib.import_module("timm")
    if "timm.data" in replacements and "timm.data" not in sys.modules:

        def load_later(name: str) -> Any:
            if name == "data":  # as an attribute, which importing timm promises
                import_torchvision()
                return importlib.import_module("timm.data")
            raise AttributeError(f"module 'timm' has no attribute {name!r}")

        timm.__dict__["__getattr__"] = load_later
    return timm


def import_lightning() -> Any:
    """Import Lightning without ``torch.compile``, whose networks it only has to recognise."""
    if "lightning" not in sys.modules:
        with contextlib.suppress(ImportError, AttributeError), _replaced(_compiler()):
            importlib.import_module("torchvision.tv_tensors")  # data modules have them
            importlib.import_module("lightning")
    return importlib.import_module("lightning")


def import_torchvision() -> None:
    """Import torchvision without ``torch.compile``, which its roi_align asks about the device."""
    if "torchvision" not in sys.modules:
        with contextlib.suppress(ImportError, AttributeError), _replaced(_compiler()):
            importlib.import_module("torchvision")


def _compiler() -> dict[str, ModuleType]:
    """What stands in for the compiler, unless it has been imported."""
    if any(name in sys.modules for name in _COMPILER):
        return {}
    found = {name: ModuleType(name) for name in _COMPILER}
    for module in found.values():
        module.__dict__["is_compile_supported"] = _is_compile_supported
        module.__dict__["OptimizedModule"] = _Later(_COMPILER[0], "OptimizedModule")
    return found


def _replacements() -> dict[str, ModuleType]:
    """What stands in for modules that are not imported yet."""
    found = _compiler()
    if "torchvision" not in sys.modules:
        for module, names in _TORCHVISION.items():
            found[module] = ModuleType(module)
            found[module].__dict__.update({name: _Later(module, name) for name in names})
        timm = importlib.util.find_spec("timm")
        if timm is not None and timm.origin is not None:
            constants = Path(timm.origin).parent / "data" / "constants.py"
            spec = importlib.util.spec_from_file_location("timm.data", constants)
            if spec is not None and spec.loader is not None and constants.is_file():
                found["timm.data"] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(found["timm.data"])
    return found


@contextlib.contextmanager
def _replaced(replacements: dict[str, ModuleType]) -> Iterator[None]:
    compiler: Any = torch.compiler
    disable = compiler.disable
    sys.modules |= replacements
    try:
        if _COMPILER[0] in replacements:
            compiler.disable = _disable
        yield
    finally:
        compiler.disable = disable
        for name in replacements:
            del sys.modules[name]


class _Later(type):
    """Stands in for a function or class: calls and instance checks are those of the real one."""

    def __new__(cls, module: str, name: str) -> _Later:
        return super().__new__(cls, name, (), {"__module__": module})

    def __init__(cls, module: str, name: str) -> None:
        super().__init__(name, (), {})

    def __call__(cls, *args: Any, **options: Any) -> Any:
        import_torchvision()
        return getattr(importlib.import_module(cls.__module__), cls.__name__)(*args, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        module = sys.modules.get(cls.__module__)
        return module is not None and isinstance(instance, getattr(module, cls.__name__))


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _disable(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """As `torch.compiler.disable`, of which the compiler only reads the mark."""
    if function is None:
        return _disable
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function
