"""Mask R-CNN with frequency self-attention in its backbone or on its feature pyramid.

Sources: Mask R-CNN (arXiv 1703.06870); the position in res4: non-local networks (arXiv 1711.07971),
section 4.1; the block: FsaNet (arXiv 2211.15595), section III.

Legend: N images, H x W image.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import mask_rcnn as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FasterRCNN,
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RPNHead

from fsanet.attention import AttentionKind, make_attention
from fsanet.attention.block import Block
from fsanet.attention.dct import BandLike
from fsanet.attention.similarity import Similarity
from fsanet.data.masks import class_palette
from fsanet.errors import InputError, check_range, printable
from fsanet.models.pyramid import Position, Pyramid, build_pyramid, expand_positions, load_published
from fsanet.models.saving import SavedNetwork, check_normalisation

__all__ = ["MaskRcnnFsa"]

_PUBLISHED = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
_BUILT = {"rpn_anchor_generator", "rpn_head", "box_head", "box_predictor", "box_roi_pool"}


class MaskRcnnFsa(GeneralizedRCNN, SavedNetwork, tags=["instance-segmentation"]):
    """torchvision's Mask R-CNN with attention blocks that start as the identity.

    A pretrained detector is therefore unchanged until it is trained. Parameters are named as in
    torchvision; those of attention are added as ``backbone.body.layer3.attention.*`` ("res4") and
    ``backbone.attention.p4.*`` (a pyramid level). Losses and detections are torchvision's.

    Args:
        backbone: "resnet50" or "resnet101" (torchvision's), or the name of a timm model with
            features at strides 4, 8, 16 and 32.
        num_classes: number of object classes, not counting background.
        version: torchvision's first detector, or its second ("v2": deeper RPN, box and mask heads
            with batch norm). Batch norms of a ResNet are frozen in "v1".
        attention: "frequency", "spatial" (the regular layer), or None for no attention.
        positions: where attention goes: "res4" (before the last residual block of the stride-16
            stage), "fpn" (a block for each pyramid level), or single levels "p2" ... "p5".
        k, similarity, recurrence, block, qkv_bias: options of the attention, see
            :class:`FrequencySelfAttention`.
        attention_norm: use batch norm in the attention ("nonlocal" blocks).
        weights: weights of the whole detector: a local state_dict (see
            :func:`fsanet.files.read_checkpoint`), or torchvision's name, such as
            "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1" (a download).
        replace_predictors: with ``weights`` for other classes: ignore their last layers (class
            scores, boxes and masks), which then start from random weights.
        backbone_weights: weights of the backbone alone: a local file; torchvision's name for a
            ResNet; or "timm" for those of a timm model (a download).
        backbone_options: further arguments of the timm model's class.
        trainable_stages: train only the last this many of a ResNet's 5 stages (torchvision trains 3
            of a pretrained network).
        norm_eps: epsilon of frozen batch norms; by default 0 for a "v1" detector with ``weights``
            (as torchvision trained it), else 1e-5.
        fpn_channels, box_channels, mask_channels: widths of the pyramid, of the box head's layers
            and of the mask head.
        anchor_sizes: side of the anchors in pixels, one for each of the five levels.
        min_size: images are resized so that their shorter side has this many pixels ...
        max_size: ... unless the longer side would then exceed this.
        mean, std: per channel, for images in 0..1; by default ImageNet's.
        detector_options: further arguments of torchvision's ``MaskRCNN``, such as
            ``rpn_post_nms_top_n_train``.
        classes: class names; by default "1", "2", ...
        category_ids: ids of the classes in the annotation file; by default 1, 2, ...

    Raises:
        InputError: invalid options or mismatched weights.

    >>> import torch
    >>> model = MaskRcnnFsa("resnet10t", num_classes=2, positions=("p4",), fpn_channels=16,
    ...                     box_channels=16, mask_channels=16, min_size=64, max_size=64).eval()
    >>> sorted(model([torch.zeros(3, 48, 64)])[0])
    ['boxes', 'labels', 'masks', 'scores']
    """

    network = "MaskRcnnFsa"
    initial_weights: ClassVar = {
        "weights": None,
        "replace_predictors": False,
        "backbone_weights": None,
    }
    #: Parameters whose names start with one of these belong to the encoder.
    encoder_prefixes = ("backbone.body.",)

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int,
        version: Literal["v1", "v2"] = "v1",
        attention: AttentionKind | None = "frequency",
        positions: Sequence[Position] = ("res4",),
        k: BandLike = 8,
        similarity: Similarity = "dot",
        recurrence: int = 1,
        block: Block = "nonlocal",
        qkv_bias: bool = False,
        attention_norm: bool = True,
        weights: str | None = None,
        replace_predictors: bool = False,
        backbone_weights: str | None = None,
        backbone_options: dict[str, Any] | None = None,
        trainable_stages: int = 5,
        norm_eps: float | None = None,
        fpn_channels: int = 256,
        box_channels: int = 1024,
        mask_channels: int = 256,
        anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
        min_size: int = 800,
        max_size: int = 1333,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        detector_options: dict[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        if version not in ("v1", "v2"):
            raise InputError(f"version={version!r}: use v1 or v2")
        if min(num_classes, fpn_channels, box_channels, mask_channels, min_size, max_size) < 1:
            raise InputError("num_classes, the widths of the heads and sizes must be at least 1")
        if not 0 <= trainable_stages <= 5:
            raise InputError(f"trainable_stages={trainable_stages}: a ResNet has 0 to 5")
        if len(anchor_sizes) != 5 or min(anchor_sizes) < 1:
            raise InputError(f"anchor_sizes={list(anchor_sizes)}: give five sides in pixels")
        mean, std = check_normalisation(mean, std, 3)
        if norm_eps is None:
            norm_eps = 0.0 if weights is not None and version == "v1" else 1e-5
        pyramid = build_pyramid(
            backbone,
            weights=backbone_weights,
            options=backbone_options,
            version=version,
            norm_eps=norm_eps,
            trainable_stages=trainable_stages,
            channels=fpn_channels,
            positions=expand_positions(positions) if attention is not None else (),
            make_block=partial(
                make_attention,
                attention,
                k=k,
                similarity=similarity,
                recurrence=recurrence,
                block=block,
                qkv_bias=qkv_bias,
                norm=attention_norm,
                zero_init=True,
            ),
        )
        detector = _detector(
            pyramid,
            detector_options or {},
            num_classes=num_classes,
            version=version,
            box_channels=box_channels,
            mask_channels=mask_channels,
            anchor_sizes=anchor_sizes,
            min_size=min_size,
            max_size=max_size,
            image_mean=list(mean),
            image_std=list(std),
        )
        super().__init__(detector.backbone, detector.rpn, detector.roi_heads, detector.transform)
        self.num_classes = num_classes
        names = [str(i + 1) for i in range(num_classes)] if classes is None else classes
        ids = range(1, num_classes + 1) if category_ids is None else category_ids
        if len(names) != num_classes or len(ids) != num_classes:
            raise InputError(
                f"{len(names)} names and {len(ids)} category ids for {num_classes} classes"
            )
        self.classes, self.category_ids = tuple(names), tuple(int(i) for i in ids)
        self.palette = class_palette(None, num_classes)
        if weights is not None:
            if replace_predictors:
                load_published(self, weights, _PUBLISHED, ignored=_PREDICTORS)
            else:
                hint = "; for other classes give replace_predictors: true"
                load_published(self, weights, _PUBLISHED, hint=hint)
        self.record_config(
            k=k,
            positions=list(positions),
            norm_eps=norm_eps,
            classes=list(self.classes),
            category_ids=list(self.category_ids),
        )

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Find instances; the network has to be in evaluation mode.

        Args:
            images: uint8, or float in 0..1, (3, H, W) each.

        Returns:
            For each image its instances by falling score: "boxes" float32 (N, 4) in pixels,
            "labels" int64 (N,), "scores" float32 (N,), and "masks" bool (N, H, W), true where
            torchvision's probability is at least 0.5.

        Raises:
            InputError: an image so narrow that no pixel would remain after resizing.
        """
        for image in images:
            short, long = sorted(image.shape[-2:])
            scale = min(min(self.transform.min_size) / short, self.transform.max_size / long)
            if short * scale < 1:
                raise InputError(
                    f"an image of {image.shape[-1]} x {image.shape[-2]} pixels is too narrow: its "
                    f"longer side is resized to {self.transform.max_size} pixels"
                )
        found = []
        for one in self(as_floats(images)):
            order = one["scores"].argsort(descending=True, stable=True)
            sorted_ = {name: one[name][order] for name in ("boxes", "labels", "scores")}
            found.append(sorted_ | {"masks": one["masks"][order, 0] >= 0.5})
        return found

    def encoder_features(self, images: Tensor) -> list[Tensor]:
        """The features of all stages of the backbone for normalised images, finest first."""
        return list(self.backbone.body(images).values())  # type: ignore[operator, union-attr]

    def attention_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters, by name, that torchvision's detector does not have."""
        return {n: p for n, p in self.named_parameters() if ".attention." in n}


def as_floats(images: Sequence[Tensor]) -> list[Tensor]:
    """Images as torchvision's detectors take them: uint8 (3, H, W) as floats in 0..1."""
    return [image if image.is_floating_point() else image.float() / 255 for image in images]


def _detector(
    pyramid: Pyramid,
    options: dict[str, Any],
    *,
    num_classes: int,
    version: Literal["v1", "v2"],
    box_channels: int,
    mask_channels: int,
    anchor_sizes: Sequence[int],
    **shared: Any,
) -> tv.MaskRCNN:
    """Build torchvision's detector on a pyramid, with the same parts as torchvision's builders."""
    allowed = _detector_options()
    for name, value in options.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; use {', '.join(sorted(allowed))}"
            raise InputError(f"detector_options: no option '{printable(name)}'{hint}")
        if type(allowed[name]) is int:  # so many boxes, or masks of the image's size
            largest = 1_000 if name == "box_detections_per_img" else 20_000
            check_range(f"detector_options: {name}", value, 1, largest)
        if type(value) not in (int, float):
            raise InputError(f"detector_options: {name} is {value!r}; give a number")
    width = pyramid.out_channels
    anchors = AnchorGenerator(
        tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes)
    )
    count = anchors.num_anchors_per_location()[0]
    norm = None if version == "v1" else nn.BatchNorm2d
    box_head: nn.Module
    if version == "v1":
        box_head = TwoMLPHead(width * 7 * 7, box_channels)
    else:
        box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [box_channels], norm_layer=norm)
    return tv.MaskRCNN(
        pyramid,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, count, conv_depth=1 if version == "v1" else 2),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(box_channels, num_classes + 1),
        mask_head=tv.MaskRCNNHeads(width, [mask_channels] * 4, 1, norm_layer=norm),
        mask_predictor=tv.MaskRCNNPredictor(mask_channels, mask_channels, num_classes + 1),
        **shared,
        **options,
    )


def _detector_options() -> dict[str, float]:
    """Arguments of torchvision's detector that its parts here leave open, with their defaults."""
    found = {
        name: parameter.default
        for kind in (tv.MaskRCNN, FasterRCNN)
        for name, parameter in inspect.signature(kind).parameters.items()
        if name.startswith(("rpn_", "box_"))
    }
    return {name: default for name, default in found.items() if name not in _BUILT}
