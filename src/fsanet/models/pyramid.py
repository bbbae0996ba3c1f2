"""Backbones with a feature pyramid and attention in them, for detectors of torchvision.

Sources: non-local networks (arXiv 1711.07971), section 4.1: one block before the last residual
block of res4; feature pyramids (arXiv 1612.03144).

Legend: B batch, C channels, h x w feature grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from fsanet.attention import AttentionKind, make_attention
from fsanet.errors import InputError

__all__ = ["LEVELS", "Position", "Pyramid", "resnet_pyramid", "timm_pyramid"]

Position = Literal["res4", "fpn", "p2", "p3", "p4", "p5"]

#: Names of the pyramid's levels, by torchvision's keys; strides 4, 8, 16, 32.
LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}
_STRIDES = (4, 8, 16, 32)
_TORCHVISION = ("resnet50", "resnet101")


class Pyramid(nn.Module):
    """Images to pyramid levels, each with its own attention block where one is asked for.

    Parameters are named as in torchvision's ``BackboneWithFPN`` (``body.*``, ``fpn.*``), and
    those of attention ``body.layer3.attention.*`` and ``attention.p2.*`` ... ``attention.p5.*``.
    The coarsest level, made by pooling the level below, is made before that one's attention.

    Args:
        body: images ``(B, 3, H, W)`` to a dict of features at strides 4, 8, 16, 32, by the
            names "0" to "3".
        fpn: torchvision's pyramid of these.
        levels: attention by level, of ``LEVELS``.
    """

    def __init__(
        self, body: nn.Module, fpn: FeaturePyramidNetwork, levels: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.attention = nn.ModuleDict(levels)
        self.out_channels = cast(Any, fpn.layer_blocks[0])[0].out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` to ``(B, C, h, w)`` for each of "0", "1", "2", "3", "pool"."""
        features = self.fpn(self.body(images))
        for level, attention in self.attention.items():
            features[LEVELS[level]] = attention(features[LEVELS[level]])
        return features


class TimmBody(nn.Module):
    """A timm network of ``features_only``, with its features at strides 4 to 32 by name."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        strides = cast(Any, encoder).feature_info.reduction()
        self.indices = [len(strides) - 1 - strides[::-1].index(s) for s in _STRIDES]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)
        return {str(level): features[index] for level, index in enumerate(self.indices)}


def check_positions(positions: Sequence[str]) -> tuple[str, ...]:
    """The positions, with "fpn" spelt out as its levels, each once.

    >>> check_positions(["res4", "fpn", "p2"])
    ('res4', 'p2', 'p3', 'p4', 'p5')
    """
    for position in positions:
        if position not in get_args(Position):
            raise InputError(
                f"positions: {position!r} is none of {', '.join(get_args(Position))}; give a list"
            )
    spelt = [p for position in positions for p in (LEVELS if position == "fpn" else (position,))]
    return tuple(dict.fromkeys(spelt))


def insert_before_last(stage: nn.Module, name: str, block: nn.Module) -> nn.Sequential:
    """The stage with ``block`` before its last part; the other parts keep their names.

    Raises:
        InputError: the stage is not a sequence of at least two parts.
    """
    if not isinstance(stage, nn.Sequential) or len(stage) < 2:
        raise InputError(
            'positions: "res4" needs a backbone whose stride-16 stage is a sequence of two or '
            'more blocks; use "p4", attention on the pyramid at the same stride'
        )
    # A Sequential runs its children in their order, whatever their names: state_dict keys of
    # the published weights stay as they are.
    *before, last = stage.named_children()
    parts = nn.Sequential()
    for key, part in [*before, (name, block), last]:
        parts.add_module(key, part)
    return parts


def resnet_pyramid(
    name: str,
    *,
    version: Literal["v1", "v2"],
    channels: int,
    norm_eps: float,
    positions: Sequence[str],
    attention: AttentionKind,
    attention_options: Mapping[str, Any],
) -> Pyramid:
    """torchvision's ResNet with a pyramid, as in its Mask R-CNN of that version.

    Args:
        name: "resnet50" or "resnet101".
        version: "v1" has frozen batch norms; "v2" trains them, and has more in the pyramid.
        channels: of the pyramid.
        norm_eps: of frozen batch norms.
        positions: see :func:`check_positions`.
        attention, attention_options: see :func:`fsanet.attention.make_attention`.
    """

    def frozen(width: int) -> nn.Module:
        return FrozenBatchNorm2d(width, eps=norm_eps)

    norm: Any = frozen if version == "v1" else nn.BatchNorm2d
    network = getattr(resnet, name)(weights=None, norm_layer=norm)
    if "res4" in positions:
        block = make_attention(attention, 1024, **attention_options)
        network.layer3 = insert_before_last(network.layer3, "attention", block)
    whole = BackboneWithFPN(
        network,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=[256, 512, 1024, 2048],
        out_channels=channels,
        norm_layer=None if version == "v1" else nn.BatchNorm2d,
    )
    return Pyramid(
        whole.body, whole.fpn, _level_blocks(channels, positions, attention, attention_options)
    )


def timm_pyramid(
    encoder: nn.Module,
    *,
    channels: int,
    positions: Sequence[str],
    attention: AttentionKind,
    attention_options: Mapping[str, Any],
) -> Pyramid:
    """A timm encoder of ``features_only`` with a pyramid; arguments as in `resnet_pyramid`.

    Raises:
        InputError: the encoder lacks a stride of 4, 8, 16 or 32, or its stride-16 stage is no
            sequence of blocks and "res4" is asked for.
    """
    info = cast(Any, encoder).feature_info
    strides = info.reduction()
    if any(stride not in strides for stride in _STRIDES):
        raise InputError(f"backbone: its features have strides {strides}; 4, 8, 16, 32 are needed")
    body = TimmBody(encoder)
    widths = [info.channels()[index] for index in body.indices]
    if "res4" in positions:
        stage = info.module_name()[body.indices[2]]
        block = make_attention(attention, widths[2], **attention_options)
        try:
            changed = insert_before_last(encoder.get_submodule(stage), "attention", block)
        except AttributeError:
            changed = insert_before_last(nn.Identity(), "attention", block)
        encoder.set_submodule(stage, changed)
    fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
    return Pyramid(body, fpn, _level_blocks(channels, positions, attention, attention_options))


def _level_blocks(
    channels: int, positions: Sequence[str], kind: AttentionKind, options: Mapping[str, Any]
) -> dict[str, nn.Module]:
    return {p: make_attention(kind, channels, **options) for p in positions if p in LEVELS}


def freeze_stages(body: nn.Module, trainable: int) -> None:
    """Stop the training of all but the last ``trainable`` of a torchvision ResNet's 5 stages.

    The attention inside a frozen stage still learns.
    """
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable]
    stages += ["bn1"] if trainable == 5 else []
    for name, parameter in body.named_parameters():
        learns = name.split(".")[0] in stages or ".attention." in name
        parameter.requires_grad_(learns)
