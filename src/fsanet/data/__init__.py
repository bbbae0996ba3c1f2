"""Data sets, joint transforms, samplers and Lightning data modules.

Names are imported on first use: Lightning takes seconds to import, and reading an image for
prediction does without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "batches": ("InstanceData", "SegmentationData"),
    "datasets.ade20k": ("Ade20k", "Ade20kData"),
    "datasets.camvid": ("CamVid", "CamVidData"),
    "datasets.cityscapes": ("Cityscapes", "CityscapesData"),
    "datasets.coco": ("CocoData", "InstanceDataset"),
    "datasets.folder": ("FolderData", "SegmentationFolder"),
    "datasets.instance_scenes": ("InstanceSceneData", "InstanceScenes"),
    "datasets.scenes": ("AMBIGUOUS_PAIRS", "ProceduralScenes", "SceneData"),
    "datasets.voc": ("VocAug", "VocAugData"),
    "images": ("list_images", "read_image"),
    "sampling": ("AugmentedDataset", "EvalSampler", "SampleKey", "TrainSampler"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULE_OF, "data_modules"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"fsanet.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def data_modules() -> dict[str, type]:
    """Import the data modules of all data sets, so that jsonargparse finds them by name.

    Returns:
        Class name to class.
    """
    names = [n for n in _MODULE_OF if n.endswith("Data") and _MODULE_OF[n] != "batches"]
    return {name: __getattr__(name) for name in names}
