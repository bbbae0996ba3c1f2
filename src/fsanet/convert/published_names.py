"""What published networks call the weights of ours, and the sizes their weights tell.

Two lineages (docs/method.md, sections 3 and 5): the paper's CCNet one, and MMSegmentation, whose
own non-local networks and the paper's FSA head have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from fsanet.attention.block import PUBLISHED_KEYS, Block
from fsanet.errors import InputError

__all__ = ["NAMES", "Source", "encoder_arguments", "published_name", "weight"]

Source = Literal["ccnet", "mmseg"]


def _attention(block: Block, published: str) -> dict[str, str]:
    return {
        f"head.attention.{ours}": f"{published}.{theirs}"
        for theirs, ours in PUBLISHED_KEYS[block].items()
    }


def _conv_module(ours: str, published: str) -> dict[str, str]:
    return {f"{ours}.0": f"{published}.conv", f"{ours}.1": f"{published}.bn"}


#: Ours to theirs, by the longest prefix that ends at a dot.
NAMES: dict[Source, dict[str, str]] = {
    "ccnet": {
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
    "mmseg": {
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
}

_BLOCKS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_WIDTHS = [64, 128, 256, 512]


def published_name(ours: str, source: Source) -> str:
    """The published name of a weight of :class:`fsanet.FsaNet`.

    >>> published_name("encoder.bn1.running_mean", "mmseg")
    'backbone.stem.7.running_mean'
    >>> published_name("head.attention.gate", "ccnet")
    'head.fsa.gamma'
    """
    names, prefix = NAMES[source], ours
    while prefix not in names:
        prefix = prefix.rpartition(".")[0]
        if not prefix:
            raise KeyError(ours)
    return names[prefix] + ours[len(prefix) :]


def weight(state: Mapping[str, Tensor], ours: str, source: Source) -> Tensor:
    """The published weight, at least two-dimensional, that ours is made from.

    Raises:
        InputError: it is missing, so that the sizes of the network cannot be told.
    """
    name = published_name(f"{ours}.weight", source)
    found = state.get(name)
    if found is None or found.ndim < 2:
        other = next(s for s in get_args(Source) if s != source)
        mark = {"ccnet": "head.fsa.", "mmseg": "decode_head."}[other]
        fits = any(key.startswith(mark) for key in state)
        hint = f"the file looks like --from {other}" if fits else "is it another network?"
        lacks = "has no convolution" if found is None else "has another shape in"
        raise InputError(f"{lacks} {name}, which --from {source} needs; {hint}")
    return found


def encoder_arguments(state: Mapping[str, Tensor], source: Source) -> dict[str, Any]:
    """Arguments of :class:`fsanet.FsaNet` for the dilated ResNet with a deep stem in ``state``.

    Raises:
        InputError: it is no such ResNet.
    """
    depths, widths = [], []
    for stage in range(1, 5):
        prefix = published_name(f"encoder.layer{stage}", source)
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = [int(match[1]) for match in map(pattern.match, state) if match]
        depths.append(max(found, default=-1) + 1)
        widths.append(weight(state, f"encoder.layer{stage}.0.conv1", source).shape[0])
    depth = _BLOCKS.get(tuple(depths))
    if depth is None:
        raise InputError(f"has stages of {depths} blocks; ResNet-50, 101 and 152 are known")
    stem = weight(state, "encoder.conv1.0", source).shape[0]
    options: dict[str, Any] = {}
    if stem not in (32, 64):
        options["stem_width"] = stem
    if widths != _WIDTHS:
        options["channels"] = widths
    # timm's names: "c" has a stem of 32, 32, 64 channels, "s" of 64, 64, 128.
    arguments: dict[str, Any] = {"encoder": f"resnet{depth}{'c' if stem == 32 else 's'}"}
    if options:
        arguments["encoder_options"] = options
    if source == "ccnet":
        arguments |= {"ceil_pool": True, "contract_dilation": False}
    return arguments
