"""Segmentation heads on the features of an encoder.

Source: FsaNet (arXiv 2211.15595), section IV. The layout around the attention is the one that CCNet
and MMSegmentation's non-local head share.

Finer features are merged as in DeepLabV3+ (arXiv 1802.02611, section 3.1), one stride at a time.
Scores of several grids are added as in FCN (arXiv 1411.4038, section 4.2).

Legend: B batch, C head channels, D decoder channels, h x w feature grid, h' x w' a finer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fsanet.attention import AttentionKind, attend, make_attention

__all__ = ["FcnHead", "FsaHead", "Merge", "conv_bn_relu"]


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and ReLU at constant resolution."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Merge(nn.Module):
    """Upsamples coarse features to the grid of finer ones and merges both.

    1x1 conv-BN-ReLU of the finer features to ``width``; bilinear upsampling of the coarse ones;
    concatenation; depthwise 3x3 conv-BN-ReLU; 1x1 conv-BN-ReLU to ``channels``.

    Args:
        coarse: channels of the coarse features.
        fine: channels of the finer features.
        width: channels to which the finer features are projected.
        channels: channels of the result.
        align_corners: passed to the bilinear upsampling.
    """

    def __init__(
        self, coarse: int, fine: int, *, width: int, channels: int, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.project = conv_bn_relu(fine, width, 1)
        self.depthwise = conv_bn_relu(coarse + width, coarse + width, groups=coarse + width)
        self.pointwise = conv_bn_relu(coarse + width, channels, 1)
        self.align_corners = align_corners

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Map ``(B, coarse, h, w)`` and ``(B, fine, h', w')`` to ``(B, channels, h', w')``."""
        x = interpolate(
            coarse, size=fine.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )  # (B, coarse, h', w')
        x = torch.cat([x, self.project(fine)], 1)  # (B, coarse + width, h', w')
        return self.pointwise(self.depthwise(x))


class FsaHead(nn.Module):
    """Attention between two convolutions, concatenated with the input and classified.

    3x3 conv-BN-ReLU to ``channels``; attention; 3x3 conv-BN-ReLU; concatenation with the input;
    3x3 conv-BN-ReLU to ``channels``; dropout; 1x1 convolution to classes. With ``finer`` features,
    a :class:`Merge` with each of them comes before the dropout, so that logits have the grid of the
    finest.

    Args:
        in_channels: channels of the encoder's last features.
        num_classes: number of classes.
        channels: width of the head (512 in the paper).
        attention: "frequency", "spatial" (the regular layer), or None for no attention.
        dropout: probability of dropping a channel before the classifier.
        finer: the encoder's finer features to merge with, their strides (8, 4, 2) and channels,
            coarsest first.
        sum_scores: classify the features of every grid, and add their scores on the finest.
        decoder_channels: width of the merged features. Those of stride 8 are projected to 3/8 of
            it, of stride 4 to 1/4, of stride 2 to 1/8. With stride 2 the width shrinks with the
            stride, to 1/2 at stride 4 and 1/4 at stride 2.
        align_corners: passed to the bilinear upsampling to finer features.
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
        finer: Mapping[int, int] | None = None,
        sum_scores: bool = False,
        decoder_channels: int = 128,
        align_corners: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.attention = make_attention(attention, channels, **options)
        self.reduce = conv_bn_relu(in_channels, channels)
        self.refine = conv_bn_relu(channels, channels)
        self.join = conv_bn_relu(in_channels + channels, channels)
        merges: list[nn.Module] = []
        coarser: list[nn.Module] = []  # classifiers of all grids but the finest
        finer = finer or {}
        for stride, fine in finer.items():
            merged = max(1, decoder_channels * stride // 8) if 2 in finer else decoder_channels
            merges.append(
                Merge(
                    channels,
                    fine,
                    width=max(1, decoder_channels * {8: 3, 4: 2, 2: 1}[stride] // 8),
                    channels=merged,
                    align_corners=align_corners,
                )
            )
            if sum_scores:
                coarser.append(nn.Conv2d(channels, num_classes, 1))
            channels = merged
        # Without any, no empty list is printed, which would change the fingerprint of old networks.
        self.merges = nn.ModuleList(merges) if merges else ()
        self.classify_coarser = nn.ModuleList(coarser) if coarser else ()
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.align_corners = align_corners

    def forward(self, features: Tensor, *finer: Tensor) -> Tensor:
        """Map features to logits.

        Args:
            features: ``(B, in_channels, h, w)``.
            *finer: as many as the argument ``finer`` has entries, coarsest first.

        Returns:
            Logits ``(B, num_classes, h, w)`` on the grid of the last argument.
        """
        x = self.reduce(features)  # (B, C, h, w)
        x = self.refine(attend(self.attention, x))  # (B, C, h, w)
        x = self.join(torch.cat([features, x], 1))  # (B, in_channels + C, h, w) to (B, C, h, w)
        coarser = []
        for index, (merge, fine) in enumerate(zip(self.merges, finer, strict=True)):
            if self.classify_coarser:
                coarser.append(self.classify_coarser[index](self.dropout(x)))
            x = merge(x, fine)  # (B, D, h', w')
        scores = self.classify(self.dropout(x))
        for coarse in coarser:
            scores = scores + interpolate(
                coarse,
                size=scores.shape[-2:],
                mode="bilinear",
                align_corners=self.align_corners,
            )  # (B, num_classes, h', w')
        return scores


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
