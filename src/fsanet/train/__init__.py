"""Training and evaluation: the Lightning task, its losses, and plain functions to run it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsanet.metrics.scores import Scores
    from fsanet.train.semantic import SemanticSegmentation
    from fsanet.train.training import TrainResult, evaluate, train

__all__ = [
    "Scores",
    "SemanticSegmentation",
    "TrainResult",
    "evaluate",
    "train",
]

_MODULES = {
    "Scores": "fsanet.metrics.scores",
    "SemanticSegmentation": "fsanet.train.semantic",
}


def __getattr__(name: str) -> Any:
    # On first use, because Lightning takes seconds to import, and the losses need none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "fsanet.train.training")), name)
