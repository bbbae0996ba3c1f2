"""How far softmax over m x m keys is from softmax over all, as m grows."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fsanet.attention.dct import BandLike
from fsanet.convert.kinds import KINDS, Kind, Wanted
from fsanet.convert.modules import chosen_modules, replacement_of
from fsanet.convert.observe import Call, Images, observe, relative_error
from fsanet.convert.report import aligned

__all__ = ["RouteError", "route_error"]


@dataclass(frozen=True)
class RouteError:
    """Relative error of route "grid" against route "tokens", by module and m.

    Attributes:
        errors: ``{module: {m: error}}``, norm of the difference over norm of what route "tokens"
            contributes.
    """

    errors: dict[str, dict[int, float]]

    def table(self) -> str:
        """A line a module, a column an m."""
        grids = sorted({m for row in self.errors.values() for m in row})
        header = ["module", *(f"m={m}" for m in grids)]
        rows = [
            [name or "(the network)", *(f"{row[m]:.1e}" for m in grids)]
            for name, row in self.errors.items()
        ]
        return "\n".join(aligned([header, *rows], left=1))

    def __str__(self) -> str:
        return self.table()


def route_error(
    model: nn.Module,
    images: Images,
    *,
    k: BandLike = 8,
    grids: Sequence[int] = (2, 4, 8, 16, 32),
    match: str | Sequence[str] = "*",
    token_grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> RouteError:
    """Compare the two routes on the inputs that each module of a network gets.

    Args:
        model: a network whose attention is softmax; it is not changed.
        images: as the network takes them, see :func:`fsanet.calibrate`.
        k: band of frequencies.
        grids: the m to look at.
        match, token_grid, prefix_tokens, kinds: see :func:`fsanet.convert_attention`.

    Raises:
        InputError: no attention, no images, or attention that is not softmax.
    """
    subject = copy.deepcopy(model).eval()
    layers: dict[str, dict[int, nn.Module]] = {}
    for name, module in chosen_modules(subject, match, kinds):

        def made(m: int | None, name: str = name, module: nn.Module = module) -> nn.Module:
            wanted = Wanted(
                name=name,
                network=subject,
                k=k,
                route="tokens" if m is None else "grid",
                grid=m or 1,
                token_grid=token_grid,
                prefix_tokens=prefix_tokens,
            )
            return replacement_of(module, wanted, kinds).eval()  # type: ignore[union-attr]

        layers[name] = {0: made(None), **{m: made(m) for m in grids}}
    squares: dict[str, dict[int, list[float]]] = {
        name: defaultdict(lambda: [0.0, 0.0]) for name in layers
    }

    def look(call: Call) -> None:
        exact = Call(
            call.name,
            call.arguments,
            call.options,
            layers[call.name][0](*call.arguments, **call.options),
        )
        for m in grids:
            for index, value in enumerate(exact.difference(layers[call.name][m])):
                squares[call.name][m][index] += value

    observe(subject, layers, images, look)
    return RouteError({name: relative_error(row) for name, row in squares.items()})
