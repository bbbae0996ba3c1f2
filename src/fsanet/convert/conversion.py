"""Replace the attention of a trained network by frequency attention with the same weights.

Source: FsaNet (arXiv 2211.15595), section IV: trained attention works almost as well when it is
applied to the low-passed map, without retraining.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from fsanet.attention.dct import Band, BandLike, band_to_json
from fsanet.attention.similarity import Similarity
from fsanet.convert.kinds import ConversionOptions
from fsanet.cost import flop_counter
from fsanet.errors import InputError

__all__ = [
    "Conversion",
    "Converted",
    "Flops",
    "align_columns",
    "convert_attention",
    "find_attention",
    "make_replacement",
    "replace_module",
    "to_json",
]


@dataclass(frozen=True)
class Converted:
    """One attention module that was replaced.

    Attributes:
        name: in the network.
        kind: class of the original.
        becomes: class of the replacement.
        k: the requested band.
        similarity: of the replacement; None if it has none.
        route: "tokens" or "grid".
        grid: points per side on route "grid", else None.
    """

    name: str
    kind: str
    becomes: str
    k: BandLike
    similarity: str | None
    route: str
    grid: int | tuple[int, int] | None

    def as_dict(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        grid = list(self.grid) if isinstance(self.grid, tuple) else self.grid
        return {**self.__dict__, "k": band_to_json(self.k), "grid": grid}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass, 2 per multiply-add.

    Products are counted (linear maps, convolutions, transforms, attention); element-wise
    operations and softmax are not.

    Attributes:
        before, after: of the network.
        modules: (before, after) of each converted module, by name.
    """

    before: int
    after: int
    modules: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Conversion:
    """A converted network and the report of its conversion.

    Attributes:
        model: the network with its attention replaced.
        modules: what was replaced, in the order of the network.
        originals: the replaced modules by name; they share their parameters with the replacements.
    """

    model: nn.Module
    modules: tuple[Converted, ...]
    originals: dict[str, nn.Module] = field(repr=False)

    def flops(self, size: int | Sequence[int], *, channels: int = 3) -> Flops:
        """Count the operations for one image, before and after.

        Nothing is computed if the network takes tensors without values.

        Args:
            size: side of the image, or (height, width), in pixels. For a network that is itself
                one attention layer: of its map.
            channels: of the image.

        Raises:
            InputError: the network does not accept an image of this size.
        """
        shape = (channels, *((size, size) if isinstance(size, int) else size))
        try:
            return self._flops(shape, "meta")
        except InputError:  # some networks, such as EoMT, read values to choose what they compute
            return self._flops(shape)

    def _flops(self, shape: Sequence[int], device: str | None = None) -> Flops:
        memo: dict[int, Any] = {}
        network = copy.deepcopy(self.model, memo).to(device)
        originals = {
            name: copy.deepcopy(module, memo).to(device) for name, module in self.originals.items()
        }
        after, modules_after = _count(network, shape, self.originals)
        for name, module in originals.items():
            network = replace_module(network, name, module)
        before, modules_before = _count(network, shape, self.originals)
        return Flops(
            before, after, {n: (modules_before[n], modules_after[n]) for n in self.originals}
        )

    def table(self, size: int | Sequence[int] | None = None, *, channels: int = 3) -> str:
        """The report as a table; with an image size, including the operations at that size."""
        header = ["module", "was", "k", "similarity", "keys"]
        rows = [
            [
                m.name or "(the network)",
                m.kind,
                "all" if m.k is None else str(m.k if isinstance(m.k, int) else Band.of(m.k)),
                m.similarity or "-",
                "all" if m.grid is None else f"grid {m.grid}",
            ]
            for m in self.modules
        ]
        last = []
        if size is not None:
            flops = self.flops(size, channels=channels)
            header += ["GFLOPs before", "after"]
            for row, module in zip(rows, self.modules, strict=True):
                row += [f"{count / 1e9:.3g}" for count in flops.modules[module.name]]
            height, width = (size, size) if isinstance(size, int) else size
            last = [
                f"network at {height}x{width}: {flops.before / 1e9:.4g} GFLOPs before, "
                f"{flops.after / 1e9:.4g} after ({100 * (flops.after / flops.before - 1):+.1f} %)"
            ]
        return "\n".join([*align_columns([header, *rows], left=5), *last])

    def __str__(self) -> str:
        return self.table()


def convert_attention(
    model: nn.Module,
    k: BandLike | Mapping[str, BandLike] = 8,
    similarity: Similarity | None = None,
    match: str | Sequence[str] = "*",
    *,
    in_place: bool = False,
    **options: Any,
) -> Conversion:
    """Replace the attention of a network by frequency attention with the same weights.

    Each module then computes the same function of a map without high frequencies; the residual
    around it is not low-passed. With ``k=None`` no frequency is removed, and the outputs are those
    of the original.

    Args:
        model: any network.
        k: low frequencies to keep (a band, see :class:`fsanet.FrequencySelfAttention`), or
            ``{pattern: k}`` to choose them by module name.
        similarity: None keeps each module's own; else "dot", "linear_softmax", "linear" or
            "softmax".
        match: glob pattern or patterns for the names of the modules to convert.
        in_place: convert the network itself instead of a deep copy.
        **options: route, grid, drop_biases, token_grid, prefix_tokens and kinds, see
            :class:`fsanet.convert.ConversionOptions`.

    Returns:
        The converted network and the report.

    Raises:
        InputError: there is nothing to convert, a pattern matches nothing, or an option is
            invalid.

    Source: arXiv 2211.15595, section IV.

    >>> import fsanet
    >>> layer = fsanet.SpatialSelfAttention(32)
    >>> fsanet.convert_attention(layer, k=4).modules[0].becomes
    'FrequencySelfAttention'
    """
    wanted = ConversionOptions(k, similarity, match, **options)
    if not in_place:
        model = copy.deepcopy(model)
    originals = find_attention(model, wanted)
    if "" in originals and in_place:
        raise InputError("the network is itself the attention: it cannot be replaced in place")
    replacements: dict[int, nn.Module] = {}  # one module may have several names
    modules = []
    for name, module in originals.items():
        if id(module) not in replacements:
            replacements[id(module)] = make_replacement(model, name, wanted)
        replacement = replacements[id(module)]
        modules.append(
            Converted(
                name=name,
                kind=type(module).__name__,
                becomes=type(replacement).__name__,
                k=wanted.band_of(name),
                similarity=getattr(replacement, "similarity", wanted.similarity),
                route=wanted.route,
                grid=wanted.grid if wanted.route == "grid" else None,
            )
        )
    for name, module in originals.items():
        model = replace_module(model, name, replacements[id(module)])
    return Conversion(model=model, modules=tuple(modules), originals=originals)


def find_attention(
    model: nn.Module, options: ConversionOptions, *others: type[nn.Module]
) -> dict[str, nn.Module]:
    """The attention modules selected by the options, by name, in the order of the network.

    Args:
        model: any network.
        options: their kinds, and patterns of their names.
        *others: classes that are attention, too, although no kind converts them.

    Raises:
        InputError: the network has no attention of a known kind, or a pattern matches none.
    """
    known = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if options.kind_of(module) is not None or isinstance(module, others)
    }
    if not known:
        supported = ", ".join(kind.description for kind in options.kinds)
        given = "" if options.match == "*" else f" (match={options.match!r})"
        names = ((name, type(module).__name__) for name, module in model.named_modules())
        seen = next((f"; {name} is a {kind}" for name, kind in names if "Attention" in kind), "")
        raise InputError(
            f"{type(model).__name__} has no attention to convert{given}{seen}; supported are "
            f"{supported}; describe any other with kinds=, see docs/conversion.md"
        )
    if not others:  # frequency attention is narrowed only where no regular attention is left
        known = {n: m for n, m in known.items() if not hasattr(m, "band")} or known
    selected = {name: module for name, module in known.items() if options.selects(name)}
    for option, patterns in (("match", options.patterns), ("k", options.bands)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in selected):
                some = ", ".join(list(known)[:4])
                more = f" and {len(known) - 4} more" if len(known) > 4 else ""
                raise InputError(
                    f"{option}: {pattern!r} matches no attention to convert; there are {some}{more}"
                )
    return selected


def make_replacement(model: nn.Module, name: str, options: ConversionOptions) -> nn.Module:
    """Frequency attention for one attention module of a network, which is left unchanged.

    Raises:
        InputError: the module cannot be converted.
    """
    module = model.get_submodule(name)
    kind = options.kind_of(module)
    if kind is None:
        raise InputError(f"{name}: {type(module).__name__} is no attention of a known kind")
    try:
        replacement = kind.convert(module, model, options.for_module(name))
    except InputError as error:
        raise InputError(f"{name}: {error}" if name else str(error)) from error
    return replacement.train(module.training)


def _count(
    network: nn.Module, shape: Sequence[int], names: Mapping[str, nn.Module]
) -> tuple[int, dict[str, int]]:
    """Operations of a network and of some of its modules, in a pass on its own device."""
    network.eval()
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with flop_counter() as counter, torch.no_grad():
            network(torch.zeros(1, *shape, device=first.device, dtype=first.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        size, line = "x".join(map(str, shape)), " ".join(str(error).split())
        raise InputError(f"the network does not take a {size} image ({line})") from error
    counts = counter.get_flop_counts()
    root = type(network).__name__
    return counter.get_total_flops(), {
        name: sum(counts.get(f"{root}.{name}" if name else root, {}).values()) for name in names
    }


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Set the module at ``name``; returns the network, ``module`` itself for an empty name."""
    if not name:
        return module
    model.set_submodule(name, module)
    return model


def align_columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of a table whose first ``left`` columns are aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def to_json(value: Any) -> Any:
    """Dictionaries with text as keys, and null in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): to_json(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
