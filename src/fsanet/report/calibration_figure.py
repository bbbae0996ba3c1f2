"""The picture of a calibration: where the energy lies, and what leaving the rest out costs."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from fsanet.convert.calibration import Calibration

_LEGEND = 12  # modules that a legend can hold; more are told by colour alone


def draw_calibration(calibration: Calibration, *, dark: bool = False) -> bytes:
    """Energy inside the k x k lowest frequencies, and error, against k; a line a module.

    The chosen k is a large dot. Modules go from the first (dark blue) to the last (yellow).

    Returns:
        a PNG file, 2400 pixels wide.
    """
    ink, ground, grid = (
        ("#d7dce2", "#171b21", "#333b45") if dark else ("#2b3138", "#fff", "#e3e7eb")
    )
    figure = Figure(figsize=(12, 4.6), dpi=200, layout="constrained", facecolor=ground)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    names = list(calibration.errors)
    colours = colormaps["viridis"]
    for index, name in enumerate(names):
        colour = colours(0.92 * index / max(len(names) - 1, 1))
        chosen = calibration.k.get(name)
        for axes, row, scale in (
            (left, calibration.energy[name], 100.0),
            (right, calibration.errors[name], 1.0),
        ):
            points = [(k, v * scale) for k, v in row.items() if math.isfinite(v) and v > 0]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=name)
            if chosen in row and row[chosen] > 0:
                axes.plot(chosen, row[chosen] * scale, "o", color=colour, markersize=7)
    ticks = sorted({k for row in calibration.errors.values() for k in row})
    for axes, title, unit in (
        (left, "energy of the attention's input inside k x k", "%"),
        (right, "error of the attention's contribution", "relative"),
    ):
        _style(axes, title, unit, ticks, ink=ink, ground=ground, grid=grid)
    right.set_yscale("log")
    right.minorticks_off()
    if calibration.baseline is None:
        right.axhline(calibration.tolerance or 1e-12, color=ink, linestyle="--", linewidth=1)
        right.annotate(
            f"tolerance {calibration.tolerance:g}",
            (1, calibration.tolerance or 1e-12),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=ink,
            fontsize=9,
        )
    if 1 < len(names) <= _LEGEND:
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles,
            [_short(label, labels) for label in labels],
            loc="outside right upper",
            frameon=False,
            labelcolor=ink,
            fontsize=8,
        )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=ground, metadata={"Software": None})
    return stream.getvalue()


def _style(
    axes: Axes, title: str, unit: str, ticks: list[int], *, ink: str, ground: str, grid: str
) -> None:
    axes.set_facecolor(ground)
    axes.set_title(title, color=ink, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("k, low frequencies kept a side", color=ink)
    axes.set_ylabel(unit, color=ink)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.tick_params(colors=ink, length=0)
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _short(name: str, names: list[str]) -> str:
    """A name without the parts at both ends that all names share."""
    parts = [other.split(".") for other in names]
    mine = name.split(".")
    while len(mine) > 1 and all(len(p) > 1 and p[0] == mine[0] for p in parts):
        mine, parts = mine[1:], [p[1:] for p in parts]
    while len(mine) > 1 and all(len(p) > 1 and p[-1] == mine[-1] for p in parts):
        mine, parts = mine[:-1], [p[:-1] for p in parts]
    return ".".join(mine)
