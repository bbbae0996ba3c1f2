"""Segmentation heads on the features of an encoder.

Source: FsaNet (arXiv 2211.15595), section IV; the layout around the attention is that of CCNet and
of MMSegmentation's non-local head.

Legend: B batch, C channels, h x w feature grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsanet.attention import AttentionKind, make_attention
from fsanet.attention.block import Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity

__all__ = ["FcnHead", "FsaHead", "conv_bn_relu"]


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU; size kept."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class FsaHead(nn.Module):
    """Global attention between two convolutions, joined with the input, then a classifier.

    3x3 conv-BN-ReLU to ``channels``; attention; 3x3 conv-BN-ReLU; concatenation with the input;
    3x3 conv-BN-ReLU to ``channels``; dropout; 1x1 convolution to classes.

    Args:
        in_channels: channels of the encoder's last features.
        num_classes: classes.
        channels: width of the head (paper: 512).
        attention: "frequency", "spatial" (the regular layer), or None for no attention.
        dropout: probability that a channel is dropped before the classifier.
        k, similarity, recurrence, block, qkv_bias, zero_init: of the attention layer, see
            :class:`FrequencySelfAttention`; ``k`` is not used by "spatial".
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        attention: AttentionKind | None = "frequency",
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        zero_init: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = make_attention(
            attention,
            channels,
            k=k,
            similarity=similarity,
            recurrence=recurrence,
            block=block,
            qkv_bias=qkv_bias,
            zero_init=zero_init,
        )
        self.reduce = conv_bn_relu(in_channels, channels)
        self.refine = conv_bn_relu(channels, channels)
        self.join = conv_bn_relu(in_channels + channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` to logits ``(B, num_classes, h, w)``."""
        x = self.reduce(features)  # (B, C, h, w)
        x = self.refine(self.attention(x))
        x = self.join(torch.cat([features, x], 1))
        return self.classify(self.dropout(x))


class FcnHead(nn.Module):
    """Auxiliary head: 3x3 conv-BN-ReLU, dropout, 1x1 convolution to classes.

    Args:
        in_channels: channels of the features it sits on.
        num_classes: classes.
        channels: width (CCNet lineage: 512, MMSegmentation: 256).
        dropout: probability that a channel is dropped before the classifier.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(in_channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` to logits ``(B, num_classes, h, w)``."""
        return self.classify(self.dropout(self.reduce(features)))
