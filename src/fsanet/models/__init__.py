"""Networks: other people's encoders with frequency attention in their heads."""

from fsanet.models.fsanet import FsaNet
from fsanet.models.heads import FcnHead, FsaHead

__all__ = ["FcnHead", "FsaHead", "FsaNet"]
