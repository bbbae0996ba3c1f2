"""Segmentation heads on the features of an encoder.

Source: FsaNet (arXiv 2211.15595), section IV. The layout around the attention is the one that CCNet
and MMSegmentation's non-local head share.

Legend: B batch, C head channels, h x w feature grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention import AttentionKind, make_attention

__all__ = ["FcnHead", "FsaHead", "conv_bn_relu"]


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU at constant resolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class FsaHead(nn.Module):
    """Attention between two convolutions, concatenated with the input and classified.

    3x3 conv-BN-ReLU to ``channels``; attention; 3x3 conv-BN-ReLU; concatenation with the input;
    3x3 conv-BN-ReLU to ``channels``; dropout; 1x1 convolution to classes.

    Args:
        in_channels: channels of the encoder's last features.
        num_classes: number of classes.
        channels: width of the head (512 in the paper).
        attention: "frequency", "spatial" (the regular layer), or None for no attention.
        dropout: probability of dropping a channel before the classifier.
        **options: ``k``, ``similarity``, ``recurrence``, ``block``, ``qkv_bias``, ``zero_init`` of
            the attention layer, see :func:`fsanet.attention.make_attention`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 512,
        attention: AttentionKind | None = "frequency",
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.attention = make_attention(attention, channels, **options)
        self.reduce = conv_bn_relu(in_channels, channels)
        self.refine = conv_bn_relu(channels, channels)
        self.join = conv_bn_relu(in_channels + channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, in_channels, h, w)`` to logits ``(B, num_classes, h, w)``."""
        x = self.reduce(features)  # (B, C, h, w)
        x = self.refine(self.attention(x))  # (B, C, h, w)
        x = self.join(torch.cat([features, x], 1))  # (B, in_channels + C, h, w) to (B, C, h, w)
        return self.classify(self.dropout(x))


class FcnHead(nn.Module):
    """Auxiliary head: 3x3 conv-BN-ReLU, dropout, 1x1 convolution to classes.

    Args:
        in_channels: channels of the features.
        num_classes: number of classes.
        channels: width of the head (512 in CCNet, 256 in MMSegmentation).
        dropout: probability of dropping a channel before the classifier.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(in_channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, in_channels, h, w)`` to logits ``(B, num_classes, h, w)``."""
        return self.classify(self.dropout(self.reduce(features)))
