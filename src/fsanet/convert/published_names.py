"""Names and conventions of published networks, and the sizes that follow from their weights.

There are two lineages (docs/checkpoints.md): the paper's CCNet one, and
MMSegmentation. The non-local networks of MMSegmentation and the paper's own head for it share
their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fsanet.attention.block import PUBLISHED_KEYS, Block
from fsanet.errors import InputError

__all__ = ["LINEAGES", "Lineage", "Source", "encoder_arguments", "weight"]

Source = Literal["ccnet", "mmseg"]


@dataclass(frozen=True)
class Lineage:
    """The conventions of one lineage.

    Attributes:
        source: its name here.
        description: in words.
        block: shape of the attention block.
        names: published names by this library's, for the longest prefix that ends at a dot.
        auxiliary: prefix of the auxiliary head.
        mark: prefix of weights that only this lineage has.
        k: band of the paper's recipes.
        mean, std: of RGB values in 0..255.
        bgr: images have their channels in the order blue, green, red.
        encoder: arguments of `FsaNet` for its variant of the ResNet.
    """

    source: Source
    description: str
    block: Block
    names: dict[str, str]
    auxiliary: str
    mark: str
    k: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    encoder: dict[str, Any] = field(default_factory=dict)

    def published_name(self, ours: str) -> str:
        """The published name of a weight of :class:`fsanet.FsaNet`.

        >>> LINEAGES["mmseg"].published_name("encoder.bn1.running_mean")
        'backbone.stem.7.running_mean'
        >>> LINEAGES["ccnet"].published_name("head.attention.gate")
        'head.fsa.gamma'
        """
        prefix = ours
        while prefix not in self.names:
            prefix = prefix.rpartition(".")[0]
            if not prefix:
                raise KeyError(ours)
        return self.names[prefix] + ours[len(prefix) :]


def _attention(block: Block, published: str) -> dict[str, str]:
    return {
        f"head.attention.{ours}": f"{published}.{theirs}"
        for theirs, ours in PUBLISHED_KEYS[block].items()
    }


def _conv_module(ours: str, published: str) -> dict[str, str]:
    return {f"{ours}.0": f"{published}.conv", f"{ours}.1": f"{published}.bn"}


LINEAGES: dict[Source, Lineage] = {
    "ccnet": Lineage(
        "ccnet",
        "CCNet-lineage FsaNet",
        "ccnet",
        names={
            "encoder.conv1.0": "conv1",
            "encoder.conv1.1": "bn1",
            "encoder.conv1.3": "conv2",
            "encoder.conv1.4": "bn2",
            "encoder.conv1.6": "conv3",
            "encoder.bn1": "bn3",
            **{f"encoder.layer{i}": f"layer{i}" for i in range(1, 5)},
            "head.reduce": "head.conva",
            **_attention("ccnet", "head.fsa"),
            "head.refine": "head.convb",
            "head.join": "head.bottleneck",
            "head.classify": "head.bottleneck.4",
            "auxiliary.reduce": "dsn",
            "auxiliary.classify": "dsn.4",
        },
        auxiliary="dsn.",
        mark="head.fsa.",
        k=8,
        mean=(122.67891434, 116.66876762, 104.00698793),
        std=(1.0, 1.0, 1.0),
        bgr=True,
        encoder={"ceil_pool": True, "contract_dilation": False},
    ),
    "mmseg": Lineage(
        "mmseg",
        "MMSegmentation FSA head",
        "nonlocal",
        names={
            "encoder.conv1": "backbone.stem",
            "encoder.bn1": "backbone.stem.7",
            **{f"encoder.layer{i}": f"backbone.layer{i}" for i in range(1, 5)},
            **_conv_module("head.reduce", "decode_head.convs.0"),
            **_attention("nonlocal", "decode_head.nl_block"),
            **_conv_module("head.refine", "decode_head.convs.1"),
            **_conv_module("head.join", "decode_head.conv_cat"),
            "head.classify": "decode_head.conv_seg",
            **_conv_module("auxiliary.reduce", "auxiliary_head.convs.0"),
            "auxiliary.classify": "auxiliary_head.conv_seg",
        },
        auxiliary="auxiliary_head.",
        mark="decode_head.",
        k=5,
        mean=(123.675, 116.28, 103.53),
        std=(58.395, 57.12, 57.375),
    ),
}

_BLOCKS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_WIDTHS = [64, 128, 256, 512]


def weight(state: Mapping[str, Tensor], ours: str, lineage: Lineage) -> Tensor:
    """The published weight, at least two-dimensional, of one of this library's layers.

    Raises:
        InputError: it is missing, so that the sizes of the network are unknown.
    """
    name = lineage.published_name(f"{ours}.weight")
    found = state.get(name)
    if found is None or found.ndim < 2:
        others = (other for other in LINEAGES.values() if other is not lineage)
        fits = [o.source for o in others if any(key.startswith(o.mark) for key in state)]
        hint = f"the file looks like --from {fits[0]}" if fits else "is it another network?"
        lacks = "has no convolution" if found is None else "has another shape in"
        raise InputError(f"{lacks} {name}, which --from {lineage.source} needs; {hint}")
    return found


def encoder_arguments(state: Mapping[str, Tensor], lineage: Lineage) -> dict[str, Any]:
    """Arguments of :class:`fsanet.FsaNet` for the dilated ResNet with a deep stem in ``state``.

    Raises:
        InputError: it is not such a ResNet.
    """
    depths, widths = [], []
    for stage in range(1, 5):
        prefix = re.escape(lineage.published_name(f"encoder.layer{stage}"))
        blocks = [int(m[1]) for m in (re.match(rf"{prefix}\.(\d+)\.", name) for name in state) if m]
        depths.append(max(blocks, default=-1) + 1)
        widths.append(weight(state, f"encoder.layer{stage}.0.conv1", lineage).shape[0])
    depth = _BLOCKS.get(tuple(depths))
    if depth is None:
        raise InputError(f"has stages of {depths} blocks; ResNet-50, 101 and 152 are supported")
    stem = weight(state, "encoder.conv1.0", lineage).shape[0]
    options: dict[str, Any] = {} if stem in (32, 64) else {"stem_width": stem}
    if widths != _WIDTHS:
        options["channels"] = widths
    # timm's names: "c" has a stem of 32, 32, 64 channels, "s" of 64, 64, 128.
    arguments: dict[str, Any] = {"encoder": f"resnet{depth}{'c' if stem == 32 else 's'}"}
    if options:
        arguments["encoder_options"] = options
    return arguments | lineage.encoder
