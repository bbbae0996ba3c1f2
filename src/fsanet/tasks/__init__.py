"""Training and evaluation: the Lightning task, its losses, and plain functions to run it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsanet.tasks.scores import Scores
    from fsanet.tasks.segmentation import SemanticSegmentation
    from fsanet.tasks.training import TrainResult, evaluate, train

__all__ = [
    "Scores",
    "SemanticSegmentation",
    "TrainResult",
    "evaluate",
    "train",
]

_MODULES = {"Scores": "scores", "SemanticSegmentation": "segmentation"}


def __getattr__(name: str) -> Any:
    # On first use, because Lightning takes seconds to import, and the losses need none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'training')}"), name)
