"""Data sets, joint transforms, samplers and Lightning data modules.

The public names are imported from `fsanet.data.modules` on first use: Lightning takes seconds to
import, and reading an image for prediction does without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "Ade20k",
    "Ade20kData",
    "CamVid",
    "CamVidData",
    "Cityscapes",
    "CityscapesData",
    "CocoData",
    "FolderData",
    "InstanceData",
    "InstanceDataset",
    "InstanceFolder",
    "InstanceFolderData",
    "InstanceSceneData",
    "InstanceScenes",
    "ProceduralScenes",
    "SceneData",
    "SegmentationData",
    "SegmentationFolder",
    "VocAug",
    "VocAugData",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("fsanet.data.modules"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
