"""Training and evaluation: the tasks, and one function each to train and to evaluate."""

from fsanet.train.instances import InstanceSegmentation
from fsanet.train.run import TrainingResult, check_evaluation, check_options, evaluate, train
from fsanet.train.semantic import SemanticSegmentation

__all__ = [
    "InstanceSegmentation",
    "SemanticSegmentation",
    "TrainingResult",
    "check_evaluation",
    "check_options",
    "evaluate",
    "train",
]
