"""Networks: other people's encoders with frequency attention in their heads."""

from fsanet.models.fsanet import FsaNet
from fsanet.models.heads import FcnHead, FsaHead
from fsanet.models.loading import load_model
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.models.segformer import SegformerFsa

__all__ = ["FcnHead", "FsaHead", "FsaNet", "MaskRcnnFsa", "SegformerFsa", "load_model"]
