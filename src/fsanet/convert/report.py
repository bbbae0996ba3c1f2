"""What a conversion did, and what it saves."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fsanet.attention.dct import Band, BandLike
from fsanet.cost import flop_counter
from fsanet.errors import InputError

__all__ = ["Conversion", "Converted", "Flops", "set_module"]


@dataclass(frozen=True)
class Converted:
    """One attention module that was replaced.

    Attributes:
        name: in the network.
        kind: class of the original.
        becomes: class of the replacement.
        k: the band kept, as it was asked for.
        similarity: of the replacement; None if it has no such thing.
        route: "tokens" or "grid".
        grid: points of a side on route "grid", else None.
    """

    name: str
    kind: str
    becomes: str
    k: BandLike
    similarity: str | None
    route: str
    grid: int | tuple[int, int] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a band as ``[[h0, h1], [w0, w1]]``, an int as it is."""
        k = self.k
        if k is not None and not isinstance(k, int):
            band = Band.of(k)
            k = [[band.h0, band.h1], [band.w0, band.w1]]
        grid = list(self.grid) if isinstance(self.grid, tuple) else self.grid
        return {**self.__dict__, "k": k, "grid": grid}


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass, 2 a multiply-add.

    Products are counted (linear maps, convolutions, transforms, attention); element-wise work
    and softmax are not.

    Attributes:
        before, after: of the network.
        modules: (before, after) of each converted module, by name.
    """

    before: int
    after: int
    modules: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Conversion:
    """A converted network, and the report of what became of it.

    Attributes:
        model: the network, its attention replaced.
        modules: what was replaced, in the network's order.
    """

    model: nn.Module
    modules: tuple[Converted, ...]
    # What each module was; parameters are shared with what stands in for it.
    replaced: dict[str, nn.Module] = field(repr=False)

    def flops(self, size: int | Sequence[int], *, channels: int = 3) -> Flops:
        """Operations before and after, for one image; nothing is computed, only counted.

        Args:
            size: side of the image, or (height, width), in pixels. For a network that is itself
                one attention layer: of its map.
            channels: of the image.

        Raises:
            InputError: if the network does not take an image of that size.
        """
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        memo: dict[int, Any] = {}
        after = copy.deepcopy(self.model, memo).eval()
        originals = {name: copy.deepcopy(module, memo) for name, module in self.replaced.items()}
        dtype = next((p.dtype for p in after.parameters() if p.is_floating_point()), None)
        image = torch.empty(1, channels, height, width, device="meta", dtype=dtype)
        counted = []
        for current in (after, None):
            network = after if current is not None else restored(after, originals)
            network.to("meta").eval()
            counter = flop_counter()
            try:
                with counter, torch.no_grad():
                    network(image)
            except (RuntimeError, AssertionError, ValueError) as error:
                line = " ".join(str(error).split())
                raise InputError(
                    f"the network does not take a {channels}x{height}x{width} image ({line})"
                ) from error
            root = type(network).__name__
            counts = {
                name: sum(counter.get_flop_counts().get(_key(root, name), {}).values())
                for name in self.replaced
            }
            counted.append((counter.get_total_flops(), counts))
        (total, mine), (before, theirs) = counted
        return Flops(before, total, {n: (theirs[n], mine[n]) for n in self.replaced})

    def table(self, size: int | Sequence[int] | None = None, *, channels: int = 3) -> str:
        """The report as lines of text; with a size, with operations at that size."""
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
            side = (size, size) if isinstance(size, int) else tuple(size)
            last = [
                f"network at {side[0]}x{side[1]}: {flops.before / 1e9:.4g} GFLOPs before, "
                f"{flops.after / 1e9:.4g} after ({100 * (flops.after / flops.before - 1):+.1f} %)"
            ]
        return "\n".join([*aligned([header, *rows], left=5), *last])

    def __str__(self) -> str:
        return self.table()


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines of columns, the first ``left`` of them aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plain(value: Any) -> Any:
    """Dictionaries as JSON holds them: keys are text, numbers that are not finite are null."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restored(model: nn.Module, originals: dict[str, nn.Module]) -> nn.Module:
    """``model`` with the modules put back."""
    for name, module in originals.items():
        model = set_module(model, name, module)
    return model


def set_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put ``module`` at ``name``; the network, which is ``module`` itself where name is empty."""
    if not name:
        return module
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


def _key(root: str, name: str) -> str:
    return f"{root}.{name}" if name else root
