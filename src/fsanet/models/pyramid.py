"""Detector backbones: features at four strides, a feature pyramid, attention in either.

Sources: non-local networks (arXiv 1711.07971), section 4.1: one block before the last residual
block of res4; feature pyramids (arXiv 1612.03144).

Legend: B batch, C pyramid channels, H x W image, h x w grid of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from fsanet.errors import InputError

__all__ = [
    "MakeBlock",
    "Position",
    "Pyramid",
    "expand_positions",
    "freeze_stages",
    "resnet_pyramid",
    "timm_pyramid",
]

Position = Literal["res4", "fpn", "p2", "p3", "p4", "p5"]
MakeBlock = Callable[[int], nn.Module]  # channels to an attention layer

_LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}  # to torchvision's keys
_STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Map images to pyramid levels, some of which pass through an attention block.

    Parameters are named as in torchvision's ``BackboneWithFPN`` (``body.*``, ``fpn.*``), those of
    attention ``body.layer3.attention.*`` and ``attention.p2.*`` ... ``attention.p5.*``. The
    coarsest level is pooled from p5 before p5's attention.

    Args:
        body: maps images ``(B, 3, H, W)`` to features at strides 4, 8, 16, 32, under the names "0"
            to "3".
        fpn: torchvision's feature pyramid on these.
        levels: attention layers by level, "p2" to "p5".
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
        """Map ``(B, 3, H, W)`` to ``(B, C, h, w)`` for each of "0", "1", "2", "3", "pool"."""
        features = self.fpn(self.body(images))
        for level, attention in self.attention.items():
            features[_LEVELS[level]] = attention(features[_LEVELS[level]])
        return features


class TimmBody(nn.Module):
    """A timm network with ``features_only`` whose features at strides 4 to 32 have names."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        strides = cast(Any, encoder).feature_info.reduction()
        self.indices = [len(strides) - 1 - strides[::-1].index(s) for s in _STRIDES]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)
        return {str(level): features[index] for level, index in enumerate(self.indices)}


def expand_positions(positions: Sequence[str]) -> tuple[str, ...]:
    """Replace "fpn" by its levels and drop duplicates.

    Raises:
        InputError: an unknown position.

    >>> expand_positions(["res4", "fpn", "p2"])
    ('res4', 'p2', 'p3', 'p4', 'p5')
    """
    for position in positions:
        if position not in get_args(Position):
            raise InputError(
                f"positions: {position!r} is none of {', '.join(get_args(Position))}; give a list"
            )
    expanded = [
        p for position in positions for p in (_LEVELS if position == "fpn" else (position,))
    ]
    return tuple(dict.fromkeys(expanded))


def resnet_pyramid(
    name: str,
    *,
    version: Literal["v1", "v2"],
    channels: int,
    norm_eps: float,
    positions: Sequence[str],
    make_block: MakeBlock,
) -> Pyramid:
    """Build torchvision's ResNet with a feature pyramid, as in its Mask R-CNN of that version.

    Args:
        name: "resnet50" or "resnet101".
        version: "v1" has frozen batch norms; "v2" has trained ones, in the pyramid as well.
        channels: channels of the pyramid.
        norm_eps: epsilon of frozen batch norms.
        positions: where attention goes, from `expand_positions`.
        make_block: builds an attention layer.
    """

    def frozen(width: int) -> nn.Module:
        return FrozenBatchNorm2d(width, eps=norm_eps)

    norm: Any = frozen if version == "v1" else nn.BatchNorm2d
    network = getattr(resnet, name)(weights=None, norm_layer=norm)
    if "res4" in positions:
        network.layer3 = _insert_before_last(network.layer3, make_block(1024))
    whole = BackboneWithFPN(
        network,
        return_layers={f"layer{i + 1}": str(i) for i in range(4)},
        in_channels_list=[256, 512, 1024, 2048],
        out_channels=channels,
        norm_layer=None if version == "v1" else nn.BatchNorm2d,
    )
    return Pyramid(whole.body, whole.fpn, _level_blocks(channels, positions, make_block))


def timm_pyramid(
    encoder: nn.Module, *, channels: int, positions: Sequence[str], make_block: MakeBlock
) -> Pyramid:
    """Put a feature pyramid on a timm encoder with ``features_only``; see `resnet_pyramid`.

    Raises:
        InputError: the encoder lacks a stride of 4, 8, 16 or 32, or "res4" is given and its
            stride-16 stage is not a sequence of blocks.
    """
    info = cast(Any, encoder).feature_info
    strides = info.reduction()
    if any(stride not in strides for stride in _STRIDES):
        raise InputError(f"backbone: its features have strides {strides}; 4, 8, 16, 32 are needed")
    body = TimmBody(encoder)
    widths = [info.channels()[index] for index in body.indices]
    if "res4" in positions:
        name = info.module_name()[body.indices[2]]
        stage = dict(encoder.named_modules()).get(name)
        encoder.set_submodule(name, _insert_before_last(stage, make_block(widths[2])))
    fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
    return Pyramid(body, fpn, _level_blocks(channels, positions, make_block))


def _insert_before_last(stage: nn.Module | None, block: nn.Module) -> nn.Sequential:
    """Insert an attention block before the last part of a stage; the parts keep their names."""
    if not isinstance(stage, nn.Sequential) or len(stage) < 2:
        raise InputError(
            'positions: "res4" needs a backbone whose stride-16 stage is a sequence of two or '
            'more blocks; use "p4", attention on the pyramid at the same stride'
        )
    # A Sequential runs its children in insertion order, so the names of published weights can stay.
    *before, last = stage.named_children()
    parts = nn.Sequential()
    for key, part in [*before, ("attention", block), last]:
        parts.add_module(key, part)
    return parts


def _level_blocks(
    channels: int, positions: Sequence[str], make_block: MakeBlock
) -> dict[str, nn.Module]:
    return {p: make_block(channels) for p in positions if p in _LEVELS}


def freeze_stages(body: nn.Module, trainable: int) -> None:
    """Train only the last ``trainable`` of a torchvision ResNet's 5 stages, and all attention."""
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable]
    stages += ["bn1"] if trainable == 5 else []
    for name, parameter in body.named_parameters():
        learns = name.split(".")[0] in stages or ".attention." in name
        parameter.requires_grad_(learns)
