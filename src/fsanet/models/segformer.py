"""SegFormer with frequency self-attention in its decode head.

Sources: SegFormer (arXiv 2105.15203), sections 3.1, 3.2 and table 6; FsaNet (arXiv 2211.15595).
The encoder and the head are those of `transformers`.

Legend: B batch, D decoder channels, H x W image, h x w feature grid (H/4 x W/4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self, cast

from torch import Tensor, nn

from fsanet.attention import (
    AttentionKind,
    FrequencySelfAttention,
    SpatialSelfAttention,
    make_attention,
)
from fsanet.attention.block import Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.errors import InputError
from fsanet.models.saving import SegmentationNetwork, band_to_json
from fsanet.models.segformer_weights import (
    SIZES,
    Variant,
    build,
    class_names,
    load,
    read_config,
    variant_of,
)

__all__ = ["SegformerFsa", "Variant"]

_SMALLEST = 29  # image side that still has 8 rows, the reduction of the first stage, at stride 4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the published weights (ImageNet)


class SegformerFsa(SegmentationNetwork):
    """SegFormer, with an attention block between the fusion of its features and its classifier.

    The block starts as the identity, so that a trained SegFormer gives the same logits until it is
    trained further. All other parameters have the names that `transformers` gives them.

    Args:
        variant: size, "b0" to "b5".
        num_classes: classes, one logit map each.
        attention: "frequency", "spatial" (regular attention) or None (plain SegFormer).
        k: band of frequencies: int, pair, ranges or None for all (frequency attention only).
        similarity: "dot", "linear_softmax", "linear" or "softmax".
        recurrence: rounds of attention with the same weights.
        block: shape of the attention block, "nonlocal" or "ccnet".
        qkv_bias: biases on queries, keys and values.
        zero_init: attention starts as the identity.
        dropout: before the classifier.
        drop_path: stochastic depth, this in the last block of the encoder, less before it.
        in_channels: channels of the images.
        pretrained: start from these weights in the format of `transformers`: a local folder, or a
            hub id (a download). A folder of an encoder alone (image classification) starts the
            decode head anew; another number of classes starts the classifier anew.
        classes: class names; by default those of ``pretrained``, else "0", "1", ...
        palette: one (r, g, b) of 0..255 per class; by default spread over the hues.
        mean, std: per channel, for values in 0..1; by default ImageNet's.

    Raises:
        InputError: `transformers` is not installed; options or weights that do not fit.

    Source: arXiv 2105.15203 (network), arXiv 2211.15595, section V (the module in it).

    >>> import pytest; _ = pytest.importorskip("transformers")
    >>> import torch
    >>> model = SegformerFsa(variant="b0", num_classes=5).eval()
    >>> model(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 5, 64, 96])
    """

    encoder_prefixes = ("segformer.",)

    def __init__(
        self,
        *,
        num_classes: int,
        variant: Variant = "b0",
        attention: AttentionKind | None = "frequency",
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        zero_init: bool = True,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        in_channels: int = 3,
        pretrained: str | None = None,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if variant not in SIZES:
            raise InputError(f"variant={variant!r}: use one of {', '.join(SIZES)}")
        if not (0 <= dropout < 1 and 0 <= drop_path < 1):
            raise InputError(f"dropout={dropout}, drop_path={drop_path}: give 0 <= p < 1")
        if in_channels < 1:
            raise InputError(f"in_channels={in_channels}: give at least 1")
        size = SIZES[variant]
        changed = {
            "num_channels": in_channels,
            "num_labels": max(num_classes, 1),
            "classifier_dropout_prob": dropout,
            "drop_path_rate": drop_path,
        }
        if pretrained is None:
            plain = build(size, changed)
        else:
            saved = read_config(pretrained)
            found = variant_of(saved)
            if found != variant:
                raise InputError(
                    f"{pretrained}: holds a SegFormer {found or 'of no published size'}, not "
                    f"{variant}" + (f"; give variant={found!r}" if found else "")
                )
            if classes is None and saved.num_labels == num_classes:
                classes = class_names(saved)
            plain = load(pretrained, saved, changed)
        known = (_MEAN, _STD) if in_channels == 3 else ((0.5,) * in_channels,) * 2
        self.describe(
            num_classes=num_classes,
            classes=classes,
            palette=palette,
            mean=known[0] if mean is None else mean,
            std=known[1] if std is None else std,
            in_channels=in_channels,
        )
        self.segformer = plain.segformer
        self.decode_head = plain.decode_head
        if attention is not None:  # between the fused features (B, D, h, w) and the classifier
            layer = make_attention(
                attention,
                size.decoder,
                k=k,
                similarity=similarity,
                recurrence=recurrence,
                block=block,
                qkv_bias=qkv_bias,
                zero_init=zero_init,
            )
            relu = self.decode_head.activation
            both = nn.Sequential(OrderedDict(activation=relu, attention=layer))
            self.decode_head.add_module("activation", both)
        # What a reload needs: resolved values in, and the source of the first weights out.
        self._hub_mixin_config = {
            **cast(dict, self._hub_mixin_config or {}),
            **self.description(),
            "network": "SegformerFsa",
            "k": band_to_json(k),
            "pretrained": None,
        }

    @property
    def encoder(self) -> nn.Module:
        """The part that training calls the encoder."""
        return self.segformer

    @property
    def attention(self) -> FrequencySelfAttention | SpatialSelfAttention | None:
        """The attention block of the decode head."""
        return getattr(self.decode_head.activation, "attention", None)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, in_channels, H, W)`` to logits ``(B, num_classes, H, W)``.

        Raises:
            InputError: images too small for the reduction of keys in the first stage.
        """
        height, width = images.shape[-2:]
        if height < _SMALLEST or width < _SMALLEST:
            raise InputError(
                f"images of {height} x {width} pixels are too small for SegFormer: "
                f"give at least {_SMALLEST} x {_SMALLEST}"
            )
        features = self.segformer(images, output_hidden_states=True).hidden_states
        return self.upsample(self.decode_head(features), images)  # (B, num_classes, h, w) inside

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, None]:
        """Logits as of :meth:`forward`, and None: SegFormer has no auxiliary head."""
        return self(images), None

    @classmethod
    def from_transformers(cls, source: str, **options: Any) -> Self:
        """The plain SegFormer in a folder or on the hub, with its size, classes and their names.

        Args:
            source: folder written by `transformers`' ``save_pretrained``, or a hub id.
            **options: constructor arguments; ``attention`` is None unless given.

        Raises:
            InputError: no SegFormer of a published size there.
        """
        config = read_config(source)
        variant = variant_of(config)
        if variant is None:
            raise InputError(
                f"{source}: stages of {tuple(config.hidden_sizes)} channels and "
                f"{tuple(config.depths)} blocks are no published size (b0 to b5)"
            )
        found = {
            "variant": variant,
            "num_classes": config.num_labels,
            "in_channels": config.num_channels,
            "attention": None,
        }
        return cls(pretrained=source, **{**found, **options})
