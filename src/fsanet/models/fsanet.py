"""FsaNet: a timm encoder with frequency self-attention in its head.

Source: FsaNet (arXiv 2211.15595), section IV.

Legend: B batch, H x W image, h x w feature grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from fsanet.attention import AttentionKind
from fsanet.attention.block import AttentionBlock, Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.errors import InputError
from fsanet.models.encoder import build_encoder, default_normalisation
from fsanet.models.heads import FcnHead, FsaHead
from fsanet.models.saving import SegmentationNetwork

__all__ = ["FsaNet"]


class FsaNet(SegmentationNetwork):
    """Semantic segmentation with global context: an encoder, :class:`FsaHead`, an auxiliary head.

    Args:
        encoder: timm model name. The paper uses "resnet101s", a ResNet-101 with a stem of three 3x3
            convolutions (64, 64, 128).
        num_classes: number of classes, one logit map each.
        attention: "frequency", or one of the baselines "spatial" (regular attention) and None.
        k: band of frequencies: int, pair, ranges or None for all (frequency attention only).
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds of attention with the same weights.
        block: shape of the attention block, "nonlocal" or "ccnet".
        qkv_bias: use biases on queries, keys and values.
        zero_init: start the attention block as the identity.
        init_std: standard deviation of the initial weights of queries, keys, values and classifiers
            (MMSegmentation: 0.01); by default torch's initial weights.
        head_channels: width of the head.
        aux_channels: width of the auxiliary head on the second-to-last stage; 0 for none. It is
            used only in training.
        dropout: channel dropout in both heads.
        output_stride: image pixels per feature position, 8 or 16.
        decoder: "multiscale" merges the head's features with the encoder's, one stride at a time
            down to ``decoder_stride``, which logits then have before they are upsampled; "summed"
            also classifies the features of each coarser stride, and adds their scores, from which
            rare classes are learned sooner; None leaves logits at ``output_stride``.
        decoder_channels: width of the merged features.
        decoder_stride: image pixels per position of the finest features merged, 4 or 2. Thin
            objects gain from 2 where the encoder has it.
        align_corners: passed to every bilinear upsampling.
        in_channels: channels of the images.
        pretrained: start from timm's weights for the encoder (a download).
        encoder_weights: start from this local file of encoder weights instead.
        encoder_options: further arguments of the timm model's class, such as ``stem_width``.
        ceil_pool, contract_dilation: how a ResNet rounds sizes and dilates the first block of a
            stage, see :func:`fsanet.models.encoder.build_encoder`; CCNet uses (True, False).
        classes: class names; by default "0", "1", ...
        palette: one (r, g, b) in 0..255 per class; by default colours spread over the hues.
        mean, std: per channel, for images in 0..1; by default those of the timm model.
        bgr: take channels in the order blue, green, red.

    Raises:
        InputError: invalid options, an unknown encoder, or weights that do not match it.

    Source: arXiv 2211.15595, section IV; recipes in docs/recipes.md.

    >>> import torch
    >>> model = FsaNet("resnet10t", num_classes=5, head_channels=32, aux_channels=0).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 5, 64, 96])
    """

    network = "FsaNet"
    initial_weights: ClassVar = {
        "pretrained": False,
        "encoder_weights": None,
        "init_std": None,
    }
    later_options: ClassVar = {
        "init_std": None,
        "decoder": None,
        "decoder_channels": 128,
        "decoder_stride": 4,
    }

    def __init__(
        self,
        encoder: str = "resnet101s",
        *,
        num_classes: int,
        attention: AttentionKind | None = "frequency",
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        zero_init: bool = True,
        init_std: float | None = None,
        head_channels: int = 512,
        aux_channels: int = 256,
        dropout: float = 0.1,
        output_stride: int = 8,
        decoder: Literal["multiscale", "summed"] | None = None,
        decoder_channels: int = 128,
        decoder_stride: int = 4,
        align_corners: bool = False,
        in_channels: int = 3,
        pretrained: bool = False,
        encoder_weights: str | None = None,
        encoder_options: dict[str, Any] | None = None,
        ceil_pool: bool = False,
        contract_dilation: bool = True,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or head_channels < 1 or aux_channels < 0:
            raise InputError(
                f"num_classes={num_classes} and head_channels={head_channels} must be >= 1, "
                f"aux_channels={aux_channels} >= 0"
            )
        if decoder not in (None, "multiscale", "summed") or decoder_channels < 1:
            raise InputError(
                f"decoder={decoder!r} must be 'multiscale', 'summed' or None, "
                f"decoder_channels={decoder_channels} >= 1"
            )
        if decoder_stride not in (2, 4):
            raise InputError(f"decoder_stride={decoder_stride}: use 4 or 2")
        known = default_normalisation(encoder, in_channels)
        self.describe(
            num_classes=num_classes,
            classes=classes,
            palette=palette,
            mean=known[0] if mean is None else mean,
            std=known[1] if std is None else std,
            in_channels=in_channels,
        )
        self.bgr, self.align_corners = bgr, align_corners
        self.encoder = build_encoder(
            encoder,
            output_stride=output_stride,
            in_channels=in_channels,
            pretrained=pretrained,
            weights=encoder_weights,
            options=encoder_options,
            ceil_pool=ceil_pool,
            contract_dilation=contract_dilation,
        )
        info = cast(Any, self.encoder).feature_info
        *_, middle, last = widths = info.channels()
        finer: dict[int, int] = {}  # index of the features to merge at each stride, coarsest first
        if decoder is not None:
            finer = _finer_features(encoder, info.reduction(), decoder_stride)
        self.finer = list(finer.values())
        self.head = FsaHead(
            last,
            num_classes,
            channels=head_channels,
            attention=attention,
            k=k,
            similarity=similarity,
            recurrence=recurrence,
            block=block,
            qkv_bias=qkv_bias,
            zero_init=zero_init,
            dropout=dropout,
            finer={stride: widths[index] for stride, index in finer.items()},
            sum_scores=decoder == "summed",
            decoder_channels=decoder_channels,
            align_corners=align_corners,
        )
        self.auxiliary = None
        if aux_channels:
            self.auxiliary = FcnHead(middle, num_classes, channels=aux_channels, dropout=dropout)
        if init_std is not None:
            self._draw_weights(init_std)
        self.record_config(k=k)

    def _draw_weights(self, std: float) -> None:
        """Draw the weights of queries, keys, values and classifiers from N(0, std^2)."""
        if not 0 < std < math.inf:
            raise InputError(f"init_std={std}: give a number above 0")
        heads: list[Any] = [self.head] if self.auxiliary is None else [self.head, self.auxiliary]
        layers: list[Any] = [*(head.classify for head in heads), *self.head.classify_coarser]
        if isinstance(self.head.attention, AttentionBlock):
            block = self.head.attention
            layers += [block.query, block.key, block.value]
        for layer in layers:
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def head_logits(self, features: list[Tensor]) -> Tensor:
        return self.head(features[-1], *(features[index] for index in self.finer))

    def forward_with_auxiliary(
        self, images: Tensor, features: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        features = self.encoder_features(images) if features is None else features
        logits, _ = super().forward_with_auxiliary(images, features)
        if self.auxiliary is None:
            return logits, None
        return logits, self.upsample(self.auxiliary(features[-2]), images)


def _finer_features(encoder: str, strides: Sequence[int], finest: int) -> dict[int, int]:
    """Index of the features that the decoder merges, by stride: the last at 8, the last at 4, ...

    Strides that are not finer than the attention's are left out, and those below ``finest``.

    Raises:
        InputError: the encoder has no features at a stride that is needed.
    """
    needed = [stride for stride in (8, 4, 2) if finest <= stride < strides[-1]]
    if not set(needed) <= set(strides):
        raise InputError(
            f"encoder {encoder!r}: its features have strides {', '.join(map(str, strides))}; "
            f"a decoder with decoder_stride={finest} needs "
            f"{' and '.join(map(str, needed))}; use another encoder, or decoder=None"
        )
    return {s: len(strides) - 1 - list(strides)[::-1].index(s) for s in needed}
