"""Data sets, joint transforms, samplers and Lightning data modules."""

import importlib
from typing import TYPE_CHECKING, Any

from fsanet.data.augment import eval_transform, train_transform
from fsanet.data.datasets.ade20k import Ade20k
from fsanet.data.datasets.camvid import CamVid
from fsanet.data.datasets.cityscapes import Cityscapes
from fsanet.data.datasets.folder import SegmentationFolder
from fsanet.data.datasets.scenes import AMBIGUOUS_PAIRS, ProceduralScenes
from fsanet.data.datasets.voc import VocAug
from fsanet.data.images import read_image
from fsanet.data.sampling import AugmentedDataset, EvalSampler, SampleKey, TrainSampler

if TYPE_CHECKING:
    from fsanet.data.datasets.published import Ade20kData, CityscapesData, VocAugData
    from fsanet.data.instances import CocoData
    from fsanet.data.module import CamVidData, FolderData, SceneData, SegmentationData

__all__ = [
    "AMBIGUOUS_PAIRS",
    "Ade20k",
    "Ade20kData",
    "AugmentedDataset",
    "CamVid",
    "CamVidData",
    "Cityscapes",
    "CityscapesData",
    "CocoData",
    "EvalSampler",
    "FolderData",
    "ProceduralScenes",
    "SampleKey",
    "SceneData",
    "SegmentationData",
    "SegmentationFolder",
    "TrainSampler",
    "VocAug",
    "VocAugData",
    "eval_transform",
    "read_image",
    "train_transform",
]


_MODULES = {
    **dict.fromkeys(("CamVidData", "FolderData", "SceneData", "SegmentationData"), "module"),
    **dict.fromkeys(("Ade20kData", "CityscapesData", "VocAugData"), "datasets.published"),
    "CocoData": "instances",
}


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; reading images for prediction does without it.
    if name in _MODULES:
        return getattr(importlib.import_module(f"fsanet.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
