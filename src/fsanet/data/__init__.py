"""Data sets, joint transforms, samplers and Lightning data modules."""

from typing import TYPE_CHECKING, Any

from fsanet.data.camvid import CamVid
from fsanet.data.folder import SegmentationFolder
from fsanet.data.images import read_image
from fsanet.data.sampling import AugmentedDataset, EvalSampler, SampleKey, TrainSampler
from fsanet.data.scenes import AMBIGUOUS_PAIRS, ProceduralScenes
from fsanet.data.transforms import eval_transform, train_transform

if TYPE_CHECKING:
    from fsanet.data.module import CamVidData, FolderData, SceneData, SegmentationData

__all__ = [
    "AMBIGUOUS_PAIRS",
    "AugmentedDataset",
    "CamVid",
    "CamVidData",
    "EvalSampler",
    "FolderData",
    "ProceduralScenes",
    "SampleKey",
    "SceneData",
    "SegmentationData",
    "SegmentationFolder",
    "TrainSampler",
    "eval_transform",
    "read_image",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; reading images for prediction does without it.
    if name in ("CamVidData", "FolderData", "SceneData", "SegmentationData"):
        from fsanet.data import module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
