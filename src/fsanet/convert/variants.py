"""Variants of a trained network with other frequencies in its attention, without retraining.

Source: FsaNet (arXiv 2211.15595), the ablation of frequency bands and the no-retraining study. A
band is a rectangle in the frequency plane, with the same range on both axes unless two are given.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

from fsanet.attention import FrequencySelfAttention, SpatialSelfAttention
from fsanet.attention.block import AttentionBlock
from fsanet.attention.dct import Band, band_to_json
from fsanet.convert.conversion import convert_attention, find_attention, replace_module
from fsanet.convert.kinds import ConversionOptions
from fsanet.errors import InputError

__all__ = ["Variant", "attention_variants", "evaluate_variants", "make_variant"]

Result = TypeVar("Result")


class CannotRemove(InputError):
    """The attention is not a residual layer that could be left out."""


@dataclass(frozen=True)
class Variant:
    """A variant of a network.

    Attributes:
        name: as shown in tables.
        kind: "trained" (the network as it is), "removed" (without attention), "k" or "band".
        band: the frequencies that attention sees; None for "trained" and "removed".
    """

    name: str
    kind: Literal["trained", "removed", "k", "band"]
    band: Band | None = None

    @classmethod
    def low_pass(cls, k: int | None) -> Variant:
        """The variant with the k x k lowest frequencies; None keeps all."""
        return cls(f"k={'full' if k is None else k}", "k", Band.of(k))

    @property
    def k(self) -> int | None:
        """k of a variant of kind "k"; None for all frequencies and for other kinds."""
        return self.band.h1 if self.kind == "k" and self.band is not None else None

    def as_dict(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return {"name": self.name, "kind": self.kind, "band": band_to_json(self.band)}


def attention_variants(
    k: Sequence[str] = (), bands: Sequence[str] = (), cuts: tuple[int, int] = (8, 16)
) -> list[Variant]:
    """Read the variants of a sweep from text.

    Args:
        k: numbers of low frequencies per axis, and "full" for all.
        bands: "low" (below the first cut), "middle" (between the cuts), "high" (from the second
            cut), "full", or ranges of frequencies: "8:16" for both axes, "0:8,16:" for rows and
            columns.
        cuts: where low ends and high begins, on both axes.

    Returns:
        "as trained", "attention removed", then the requested ones in the given order.

    Raises:
        InputError: a number below 1, an empty range, an unknown name, or a duplicate.

    >>> [variant.name for variant in attention_variants(["4", "full"], ["high", "0:8,8:16"])]
    ['as trained', 'attention removed', 'k=4', 'k=full', 'high 16:', '0:8,8:16']
    """
    first, second = cuts
    if not 0 < first < second:
        raise InputError(f"--cuts {first} {second}: give two frequencies in increasing order")
    variants = [Variant("as trained", "trained"), Variant("attention removed", "removed")]
    for text in k:
        if text != "full" and not re.fullmatch(r"0*[1-9]\d{0,8}", text):
            raise InputError(f"--k {text}: give numbers from 1 up, or full")
        variants.append(Variant.low_pass(None if text == "full" else int(text)))
    ranges = {"low": f"0:{first}", "middle": f"{first}:{second}", "high": f"{second}:", "full": ":"}
    for text in bands:
        name = text if text not in ranges or text == "full" else f"{text} {ranges[text]}"
        variants.append(Variant(name, "band", _band(ranges.get(text, text))))
    names = [variant.name for variant in variants]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{', '.join(duplicates)}: given twice")
    return variants


def _band(text: str) -> Band:
    sides = [re.fullmatch(r"(\d{0,9}):(\d{0,9})", side.strip()) for side in text.split(",")]
    if len(sides) > 2 or not all(sides):
        raise InputError(
            f"--bands {text}: give low, middle, high, full, or ranges like 8:16 or 0:8,16:"
        )
    pairs = [(int(side[1] or 0), int(side[2]) if side[2] else None) for side in sides if side]
    try:
        return Band.of(pairs if len(pairs) == 2 else pairs * 2)
    except InputError as error:
        raise InputError(f"--bands {text}: {error}") from error


def evaluate_variants(
    model: nn.Module,
    variants: Iterable[Variant],
    evaluate: Callable[[nn.Module], Result],
    *,
    known: Mapping[str, Result] | None = None,
    match: str = "*",
    **options: Any,
) -> Iterator[tuple[Variant, Result]]:
    """Evaluate variants of a network one after the other, without training.

    Each band is evaluated once. Where the attention cannot be removed, the variant without it is
    skipped.

    Args:
        model: trained network; it is not changed.
        variants: to evaluate.
        evaluate: called with each network.
        known: results by name that need no evaluation.
        match: glob pattern for the names of the attention layers to change.
        **options: those of :func:`fsanet.convert_attention`.

    Yields:
        each variant with its result.

    Raises:
        InputError: `match` selects no attention; or with the name of the variant that cannot be
            made or evaluated.
    """
    variants, results = list(variants), dict(known or {})
    if any(variant.kind != "trained" for variant in variants):
        _find_layers(model, match, options)  # before the first evaluation
    for variant in variants:
        if variant.name not in results:
            same = [v.name for v in variants if v.band == variant.band and v.name in results]
            if variant.band is not None and same:
                results[variant.name] = results[same[0]]
            else:
                try:
                    network = make_variant(model, variant, match, **options)
                    results[variant.name] = evaluate(network)
                except CannotRemove:
                    continue
                except InputError as error:
                    raise InputError(f"{variant.name}: {error}") from error
        yield variant, results[variant.name]


def make_variant(model: nn.Module, variant: Variant, match: str = "*", **options: Any) -> nn.Module:
    """A copy of a network with the attention of a variant and the same weights.

    This library's attention layers are changed if there are any (regular ones become frequency
    attention, the others get another band), otherwise every attention that
    :func:`fsanet.convert_attention` knows.

    Args:
        model: trained network; it is not changed, and returned itself for "trained".
        variant: what to make of it.
        match: glob pattern for the names of the attention layers to change.
        **options: those of :func:`fsanet.convert_attention`.

    Raises:
        InputError: the network has no attention, none that `match` selects, or one that cannot be
            removed.
    """
    if variant.kind == "trained":
        return model
    names = [
        name
        for name, module in _find_layers(model, match, options).items()
        if isinstance(module, AttentionBlock)
    ]
    if not names:
        if variant.kind != "removed":
            return convert_attention(model, variant.band, match=match, **options).model
        # Attention that becomes a layer over maps adds to its input, so the input remains.
        conversion = convert_attention(model, match=match)
        model, names = conversion.model, [one.name for one in conversion.modules]
        for one in conversion.modules:
            if not isinstance(model.get_submodule(one.name), FrequencySelfAttention):
                raise CannotRemove(
                    f"{one.name}: {one.kind} is not a residual layer over maps and cannot be "
                    "removed"
                )
    else:
        model = copy.deepcopy(model)
    for name in names:
        layer = model.get_submodule(name)
        if variant.kind == "removed":
            model = replace_module(model, name, nn.Identity())
        elif isinstance(layer, FrequencySelfAttention):
            layer.band = Band.of(variant.band)
        elif isinstance(layer, SpatialSelfAttention):
            # The layer by itself, because its name as a pattern could match others, too.
            changed = convert_attention(layer, variant.band, **options).model
            model = replace_module(model, name, changed)
        else:
            raise InputError(f"{name}: {type(layer).__name__} has no frequencies to choose from")
    return model


def _find_layers(model: nn.Module, match: str, options: Mapping[str, Any]) -> dict[str, nn.Module]:
    """This library's layers and what can be converted, by name."""
    return find_attention(model, ConversionOptions(match=match, **options), AttentionBlock)
