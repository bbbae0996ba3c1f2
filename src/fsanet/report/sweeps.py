"""Which frequencies matter: one trained network with other bands in its attention, no retraining.

Source: FsaNet (arXiv 2211.15595), the ablation over frequency bands and the no-retraining study.
A band is a rectangle of the frequency plane, the same range of both axes unless two are given.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.block import AttentionBlock
from fsanet.attention.dct import Band
from fsanet.convert import convert_attention
from fsanet.convert.report import set_module
from fsanet.errors import InputError
from fsanet.models.saving import band_to_json

__all__ = ["Point", "attention_points", "with_point"]

_NAMED = ("low", "middle", "high", "full")


@dataclass(frozen=True)
class Point:
    """One network of a sweep.

    Attributes:
        name: as tables have it.
        kind: "trained" (the network as it is), "removed" (without attention), "k" or "band".
        band: frequencies that attention sees; None for "trained" and "removed".
    """

    name: str
    kind: Literal["trained", "removed", "k", "band"]
    band: Band | None = None

    @property
    def k(self) -> int | None:
        """The k of a point of a k sweep that is a number; None for "full" and for bands."""
        return self.band.h1 if self.kind == "k" and self.band is not None else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        band = None if self.band is None else band_to_json(self.band)
        return {"name": self.name, "kind": self.kind, "band": band}


def attention_points(
    k: Sequence[str] = (), bands: Sequence[str] = (), cuts: tuple[int, int] = (8, 16)
) -> list[Point]:
    """The points of a sweep, from what users write.

    Args:
        k: numbers of low frequencies a side, and "full" for all.
        bands: "low" (up to the first cut), "middle" (between the cuts), "high" (from the second
            one), "full", or ranges of frequencies: "8:16" for both axes, "0:8,16:" for rows and
            columns.
        cuts: where low ends and high begins, on both axes.

    Returns:
        "as trained", "attention removed", then the points asked for in their order.

    Raises:
        InputError: a number below 1, a range that is empty, a name that is none, one given twice.

    >>> [point.name for point in attention_points(["4", "full"], ["high", "0:8,8:16"])]
    ['as trained', 'attention removed', 'k=4', 'k=full', 'high 16:', '0:8,8:16']
    """
    first, second = cuts
    if not 0 < first < second:
        raise InputError(f"--cuts {first} {second}: give two frequencies, the first one lower")
    points = [Point("as trained", "trained"), Point("attention removed", "removed")]
    for text in k:
        if text != "full" and not (text.isdecimal() and int(text) > 0):
            raise InputError(f"--k {text}: give numbers from 1 up, or full")
        band = Band.of(None if text == "full" else int(text))
        points.append(Point(f"k={text}", "k", band))
    ranges = {"low": f"0:{first}", "middle": f"{first}:{second}", "high": f"{second}:", "full": ":"}
    for text in bands:
        band = _band(ranges.get(text, text))
        name = text if text not in ranges or text == "full" else f"{text} {ranges[text]}"
        points.append(Point(name, "band", band))
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(twice)}: given twice")
    return points


def _band(text: str) -> Band:
    sides = text.split(",")
    found = [re.fullmatch(r"(\d*):(\d*)", side.strip()) for side in sides]
    if len(sides) > 2 or not all(found):
        raise InputError(
            f"--bands {text}: give {', '.join(_NAMED)}, or ranges like 8:16 or 0:8,16:"
        )
    pairs = [(int(one[1] or 0), int(one[2]) if one[2] else None) for one in found if one]
    try:
        return Band.of(pairs if len(pairs) == 2 else pairs * 2)
    except InputError as error:
        raise InputError(f"--bands {text}: {error}") from error


def with_point(model: nn.Module, point: Point, match: str = "*") -> nn.Module:
    """A copy of the network with the attention of a point; weights as they are.

    This library's own attention layers are changed where there are any (regular ones become
    frequency attention, others get another band); else every attention that
    `fsanet.convert_attention` knows.

    Args:
        model: trained network; left alone.
        point: what to make of it.
        match: glob pattern for the names of attention layers to change.

    Raises:
        InputError: no attention in the network, or one that cannot be taken out ("removed").
    """
    if point.kind == "trained":
        return model
    own = [
        name
        for name, module in model.named_modules()
        if isinstance(module, AttentionBlock) and fnmatchcase(name, match)
    ]
    if own:
        return _of_own_layers(copy.deepcopy(model), own, point)
    if point.kind == "removed":
        # What becomes a layer of maps adds to its input: without it, the input is left.
        converted = convert_attention(model, match=match)
        result = converted.model
        for one in converted.modules:
            if not isinstance(result.get_submodule(one.name), FrequencySelfAttention):
                raise InputError(
                    f"{one.name}: {one.kind} is no residual layer of maps and cannot be taken out"
                )
            result = set_module(result, one.name, nn.Identity())
        return result
    return convert_attention(model, k=_k_of(point), match=match).model


def _of_own_layers(model: nn.Module, names: list[str], point: Point) -> nn.Module:
    for name in names:
        layer = model.get_submodule(name)
        if point.kind == "removed":
            model = set_module(model, name, nn.Identity())
        elif isinstance(layer, FrequencySelfAttention):
            layer.band = Band.of(point.band)
        elif isinstance(layer, SpatialSelfAttention):
            # The layer by itself, because a pattern of its name would fit others, too.
            model = set_module(model, name, convert_attention(layer, k=_k_of(point)).model)
        else:
            raise InputError(f"{name}: {type(layer).__name__} has no frequencies to choose")
    return model


def _k_of(point: Point) -> Band:
    if point.band is None:
        raise ValueError(f"{point.name}: a point without a band")
    return point.band
