"""Networks: published encoders with frequency self-attention in their heads or backbones.

Each is imported on first use, because Mask R-CNN alone needs torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsanet.imports import import_torchvision

if TYPE_CHECKING:
    from fsanet.models.fsanet import FsaNet
    from fsanet.models.heads import FcnHead, FsaHead
    from fsanet.models.mask_rcnn import MaskRcnnFsa
    from fsanet.models.segformer import SegformerFsa

__all__ = ["FcnHead", "FsaHead", "FsaNet", "MaskRcnnFsa", "SegformerFsa"]

_MODULES = {
    "FcnHead": "fsanet.models.heads",
    "FsaHead": "fsanet.models.heads",
    "FsaNet": "fsanet.models.fsanet",
    "MaskRcnnFsa": "fsanet.models.mask_rcnn",
    "SegformerFsa": "fsanet.models.segformer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fsanet.models' has no attribute {name!r}")
    if name == "MaskRcnnFsa":
        import_torchvision()
    return getattr(import_module(_MODULES[name]), name)
