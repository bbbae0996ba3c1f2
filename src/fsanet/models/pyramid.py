"""Detector backbones: features at four strides, a feature pyramid, attention in either.

Sources: non-local networks (arXiv 1711.07971), section 4.1: one block before the last residual
block of res4; feature pyramids (arXiv 1612.03144).

Legend: B batch, C pyramid channels, H x W image, h x w grid of a level.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from fsanet.attention import attend
from fsanet.errors import InputError, one_line
from fsanet.files import read_weights
from fsanet.models.encoder import build_encoder
from fsanet.models.saving import check_state

__all__ = [
    "MakeBlock",
    "Position",
    "Pyramid",
    "build_pyramid",
    "expand_positions",
    "load_published",
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
            features[_LEVELS[level]] = attend(attention, features[_LEVELS[level]])
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


def build_pyramid(
    name: str,
    *,
    weights: str | None,
    options: dict[str, Any] | None,
    version: Literal["v1", "v2"],
    norm_eps: float,
    trainable_stages: int,
    channels: int,
    positions: Sequence[str],
    make_block: MakeBlock,
) -> Pyramid:
    """Build a detector's backbone with its feature pyramid and attention.

    Args:
        name: "resnet50" or "resnet101" for torchvision's, else a timm model.
        weights: backbone weights: a local file, or torchvision's name for a ResNet; of a timm
            model also "timm", its own weights (a download).
        options: further arguments of the timm model's class.
        version: torchvision's first or second detector. A ResNet has frozen batch norms in "v1";
            in "v2" they are trained, and the pyramid has them as well.
        norm_eps: epsilon of frozen batch norms.
        trainable_stages: the last this many of a ResNet's 5 stages are trained.
        channels: channels of the pyramid.
        positions: where attention goes, from `expand_positions`.
        make_block: builds an attention layer.

    Raises:
        InputError: an unknown backbone, or one that lacks a stride of 4, 8, 16 or 32; mismatched
            weights; "res4" on a backbone whose stride-16 stage is not a sequence of blocks.
    """
    if name not in ("resnet50", "resnet101"):
        pretrained = weights == "timm"
        file = None if pretrained else weights
        encoder = build_encoder(
            name, output_stride=32, pretrained=pretrained, weights=file, options=options
        )
        return _timm_pyramid(encoder, channels=channels, positions=positions, make_block=make_block)
    if options:
        raise InputError(f"backbone_options are for timm models, not for {name!r}")
    pyramid = _resnet_pyramid(
        name,
        version=version,
        channels=channels,
        norm_eps=norm_eps,
        positions=positions,
        make_block=make_block,
    )
    if weights is not None:
        load_published(pyramid.body, weights, (name,), ignored=("fc.",))
    _freeze_stages(pyramid.body, trainable_stages)
    return pyramid


def _resnet_pyramid(
    name: str,
    *,
    version: Literal["v1", "v2"],
    channels: int,
    norm_eps: float,
    positions: Sequence[str],
    make_block: MakeBlock,
) -> Pyramid:
    """torchvision's ResNet with a feature pyramid, as in its Mask R-CNN of that version."""

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


def _timm_pyramid(
    encoder: nn.Module, *, channels: int, positions: Sequence[str], make_block: MakeBlock
) -> Pyramid:
    """A feature pyramid on a timm encoder with ``features_only``."""
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


def _freeze_stages(body: nn.Module, trainable: int) -> None:
    """Train only the last ``trainable`` of a torchvision ResNet's 5 stages, and all attention."""
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable]
    stages += ["bn1"] if trainable == 5 else []
    for name, parameter in body.named_parameters():
        learns = name.split(".")[0] in stages or ".attention." in name
        parameter.requires_grad_(learns)


def load_published(
    module: nn.Module,
    source: str,
    models: Sequence[str],
    *,
    ignored: tuple[str, ...] = (),
    hint: str = "",
) -> None:
    """Load torchvision's weights into a network that may have attention on top.

    Args:
        module: the network; its attention, and what it has under ``ignored``, stay as they are.
        source: path of a state_dict, or torchvision's name of published weights.
        models: torchvision's models whose published weights are accepted.
        ignored: prefixes of names in the source to ignore.
        hint: what to do about weights that do not fit.

    Raises:
        InputError: any other name is missing, unexpected or of another shape.
    """
    kind, _, member = source.partition(".")
    is_name = kind.endswith("_Weights") and member.isidentifier()
    state = _download(source, models) if is_name else read_weights(source)
    own = module.state_dict()
    kept = {n: v for n, v in own.items() if ".attention." in n or n.startswith(ignored)}
    state = {
        n: v
        for n, v in state.items()
        if not n.startswith(ignored) and (n in own or not n.endswith("num_batches_tracked"))
    }
    try:
        check_state(module, kept | state, source)
    except InputError as error:
        raise InputError(f"{error}{hint}") from error
    module.load_state_dict(kept | state)


def _download(name: str, models: Sequence[str]) -> dict[str, Tensor]:
    known = {f"{type(w).__name__}.{w.name}": w for m in models for w in get_model_weights(m)}
    if name not in known:
        raise InputError(f"weights {name!r}: give one of {', '.join(known)}, or a local file")
    url = known[name].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            check = re.search(r"-([a-f0-9]+)\.", file.name)  # the file name has a part of its hash
            torch.hub.download_url_to_file(url, str(file), check and check[1])
        except (OSError, RuntimeError) as error:
            reason = one_line(error)
            raise InputError(f"weights {name!r}: download failed ({reason})") from error
    return read_weights(file)
