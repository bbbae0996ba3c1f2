"""How many frequencies each attention module of a network needs.

Source: FsaNet (arXiv 2211.15595), section III, for the energy of low frequencies, and section IV
for attention on them with no retraining.

Legend: B batch, C channels, H x W grid.
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsanet.attention.dct import Band, analyse, dct_bases
from fsanet.attention.similarity import Similarity
from fsanet.convert.kinds import KINDS, Kind, Wanted
from fsanet.convert.modules import chosen_modules, replacement_of
from fsanet.convert.observe import Call, Images, input_map, observe, relative_error
from fsanet.convert.report import aligned, plain, set_module
from fsanet.convert.token_attention import Route
from fsanet.errors import InputError

__all__ = ["Calibration", "calibrate"]

CANDIDATES = (1, 2, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Calibration:
    """The frequencies each module needs, and what that was decided on.

    Attributes:
        k: ``{module: k}``, for ``convert_attention(model, k=...)``; modules for which no
            candidate was good enough are absent, and so stay as they are.
        tolerance: largest relative error, or largest drop of the metric.
        errors: ``{module: {k: relative error}}`` of the module's contribution.
        energy: ``{module: {k: share}}`` of the energy of the attention's input, 0..1, that lies
            in its k x k lowest frequencies.
        metrics: ``{module: {k: metric}}`` of what was tried, each with the modules before it
            converted as decided; None if decided by error.
        baseline: metric of the original, or None.
        final: metric with all of ``k``, or None.
    """

    k: dict[str, int]
    tolerance: float
    errors: dict[str, dict[int, float]]
    energy: dict[str, dict[int, float]]
    metrics: dict[str, dict[int, float]] | None = None
    baseline: float | None = None
    final: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite are null."""
        return plain(self.__dict__)

    def table(self) -> str:
        """A line a module: k, and error and energy at it."""
        rows = [["module", "k", "error", "energy inside"]]
        for name, errors in self.errors.items():
            k = self.k.get(name)
            shown = max(errors) if k is None else k
            rows.append(
                [
                    name or "(the network)",
                    "left" if k is None else str(k),
                    f"{errors[shown]:.1e}",
                    f"{100 * self.energy[name][shown]:.1f} %",
                ]
            )
        lines = aligned(rows, left=1)
        if any(name not in self.k for name in self.errors):
            lines.append("left: no candidate is within the tolerance; the figures are of the last")
        if self.baseline is not None and self.final is not None:
            lines.append(f"metric {self.baseline:.4f} before, {self.final:.4f} after")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def draw(self, *, dark: bool = False) -> bytes:
        """Energy and error against k, a line a module: a PNG file."""
        from fsanet.report.figures import draw_calibration

        return draw_calibration(self, dark=dark)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``calibration.json`` and ``calibration.png``.

        Raises:
            InputError: the folder cannot be written to.
        """
        from fsanet.files import write_json, write_whole

        write_json(Path(folder, "calibration.json"), self.as_dict())
        picture = self.draw()
        write_whole(Path(folder, "calibration.png"), lambda stream: stream.write(picture))


def calibrate(
    model: nn.Module,
    images: Images,
    *,
    tolerance: float = 0.05,
    metric: Callable[[nn.Module], float] | None = None,
    candidates: Sequence[int] = CANDIDATES,
    similarity: Similarity | None = None,
    match: str | Sequence[str] = "*",
    route: Route = "tokens",
    grid: int | tuple[int, int] = 16,
    drop_biases: bool = False,
    token_grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    kinds: Sequence[Kind] = KINDS,
) -> Calibration:
    """Choose k for each attention module: the smallest that is good enough on a few images.

    By error: each module is given what it gets in the original network, and its contribution
    (its output; for a layer with the residual inside, what it adds to its input) may differ from
    the original's by ``tolerance``, relative to its norm. By metric: modules are converted one
    after the other, each with the smallest k that keeps the metric of the network, as converted
    so far, within ``tolerance`` of the original's.

    Args:
        model: the network; it is not changed.
        images: what it takes, its own normalisation done: (B, C, H, W), or several such, of any
            sizes.
        tolerance: largest relative error, or largest absolute drop of the metric.
        metric: ``metric(network) -> float``, higher is better.
        candidates: the k to try.
        similarity, match, route, grid, drop_biases, token_grid, prefix_tokens, kinds: of the
            conversion, see :func:`fsanet.convert_attention`.

    Raises:
        InputError: no attention, no images, or an option that makes no sense.
    """
    if tolerance < 0:
        raise InputError(f"tolerance={tolerance}: give a number of at least 0")
    ks = sorted(set(candidates))
    if not ks or not all(type(k) is int and k >= 1 for k in ks):
        raise InputError(f"candidates={tuple(candidates)}: give one or more k of at least 1")
    subject = copy.deepcopy(model).eval()
    layers: dict[str, dict[int, nn.Module]] = {}
    for name, module in chosen_modules(subject, match, kinds):
        layers[name] = {}
        for k in ks:
            wanted = Wanted(
                name=name,
                network=subject,
                k=k,
                similarity=similarity,
                route=route,
                grid=grid,
                drop_biases=drop_biases,
                token_grid=token_grid,
                prefix_tokens=prefix_tokens,
            )
            replacement = replacement_of(module, wanted, kinds)
            layers[name][k] = replacement.eval()  # type: ignore[union-attr]
    squares: dict[str, dict[int, list[float]]] = {
        name: defaultdict(lambda: [0.0, 0.0]) for name in layers
    }
    inside: dict[str, dict[int, float]] = {name: defaultdict(float) for name in layers}
    total: dict[str, float] = defaultdict(float)

    def look(call: Call) -> None:
        for k, replacement in layers[call.name].items():
            for index, value in enumerate(call.difference(replacement)):
                squares[call.name][k][index] += value
        energy = _corner_energy(input_map(layers[call.name][ks[0]], call))  # (H, W)
        height, width = energy.shape
        for k in ks:
            inside[call.name][k] += energy[min(k, height) - 1, min(k, width) - 1].item()
        total[call.name] += energy[-1, -1].item()

    observe(subject, layers, images, look)
    errors = {name: relative_error(row) for name, row in squares.items()}
    energy = {
        name: {k: inside[name][k] / total[name] if total[name] else 1.0 for k in ks}
        for name in layers
    }
    if metric is None:
        smallest = {
            name: next((k for k in ks if row[k] <= tolerance), None) for name, row in errors.items()
        }
        chosen = {name: k for name, k in smallest.items() if k is not None}
        return Calibration(k=chosen, tolerance=tolerance, errors=errors, energy=energy)
    return _by_metric(subject, layers, metric, tolerance, errors, energy)


def _by_metric(
    network: nn.Module,
    layers: dict[str, dict[int, nn.Module]],
    metric: Callable[[nn.Module], float],
    tolerance: float,
    errors: dict[str, dict[int, float]],
    energy: dict[str, dict[int, float]],
) -> Calibration:
    baseline = final = float(metric(network))
    chosen: dict[str, int] = {}
    metrics: dict[str, dict[int, float]] = {}
    for name, replacements in layers.items():
        original = network.get_submodule(name)
        metrics[name] = {}
        for k, replacement in replacements.items():
            network = set_module(network, name, replacement)
            value = metrics[name][k] = float(metric(network))
            if baseline - value <= tolerance:
                chosen[name], final = k, value
                break
        else:
            network = set_module(network, name, original)
    return Calibration(
        k=chosen,
        tolerance=tolerance,
        errors=errors,
        energy=energy,
        metrics=metrics,
        baseline=baseline,
        final=final,
    )


def _corner_energy(x: Tensor) -> Tensor:
    """Energy of the frequencies up to (u, v), both included, for each (u, v): (H, W)."""
    rows, columns = dct_bases(x, Band.of(None).clip(x.shape[-2], x.shape[-1]))
    power = analyse(x, rows, columns).to(torch.float64).square().sum((0, 1))  # (H, W)
    return power.cumsum(0).cumsum(1)
