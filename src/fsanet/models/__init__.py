"""Networks: published encoders with frequency self-attention in their heads or backbones."""

from fsanet.models.fsanet import FsaNet
from fsanet.models.heads import FcnHead, FsaHead
from fsanet.models.mask_rcnn import MaskRcnnFsa
from fsanet.models.segformer import SegformerFsa

__all__ = ["FcnHead", "FsaHead", "FsaNet", "MaskRcnnFsa", "SegformerFsa"]
