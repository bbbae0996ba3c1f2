"""Figures: training curves, frequency sweeps, calibrations; each function gives a PNG file."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fsanet.convert.calibration import Calibration
from fsanet.convert.variants import Variant
from fsanet.errors import InputError
from fsanet.inputs import read_text

__all__ = ["History", "draw_calibration", "draw_curves", "draw_sweep", "read_history"]


class Scheme(NamedTuple):
    """Colours of a figure."""

    ink: str
    ground: str
    grid: str
    first: str
    second: str


LIGHT = Scheme("#2b3138", "#ffffff", "#e3e7eb", "#1f6fc4", "#d9730d")
DARK = Scheme("#d7dce2", "#171b21", "#333b45", "#6cb0ff", "#ffb454")


def new_figure(
    width: float, height: float, columns: int, scheme: Scheme, *, rows: int = 1
) -> tuple[Figure, list]:
    """A figure with panels side by side, row by row.

    Args:
        width, height: in inches, at 200 dots an inch.
        columns: number of panels in a row.
        scheme: colours.
        rows: number of rows.
    """
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor=scheme.ground)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def style(axes: Axes, title: str, scheme: Scheme, *, grid: str = "both") -> None:
    """The look that all panels share."""
    axes.set_facecolor(scheme.ground)
    axes.set_title(title, color=scheme.ink, loc="left", fontsize=11, weight="bold")
    axes.tick_params(colors=scheme.ink, length=0)
    axes.grid(color=scheme.grid, linewidth=0.8, axis=grid)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same content."""
    stream = io.BytesIO()
    figure.savefig(
        stream, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return stream.getvalue()


# --- training curves ---------------------------------------------------------------------

Series = tuple[tuple[int, float], ...]  # (step, value), by step


@dataclass(frozen=True)
class History:
    """What was measured during training, each as (optimiser step, value).

    Attributes:
        loss: training loss.
        miou: validation mIoU, 0..1.
    """

    loss: Series
    miou: Series


def read_history(path: Path) -> History:
    """Read the ``metrics.csv`` of a run folder.

    Raises:
        InputError: see `read_text`; or the file is not of that form.
    """
    text = read_text(path, "metrics")
    try:
        rows = list(csv.DictReader(text.splitlines()))
        return History(loss=_column(rows, "train/loss"), miou=_column(rows, "val/miou"))
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a metrics file of a training run ({error})") from error


def _column(rows: list[dict[str, str]], name: str) -> Series:
    values = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return tuple(sorted((step, value) for step, value in values if math.isfinite(value)))


Panel = Literal["loss", "miou"]


def draw_curves(
    histories: Mapping[str, History],
    panels: Sequence[Panel] = ("loss", "miou"),
    *,
    dark: bool = False,
) -> bytes:
    """Loss and validation mIoU against optimiser steps, side by side.

    Args:
        histories: one or two to draw, by name; the names are shown where there are two. A panel
            without any series says "not measured".
        panels: what to draw.
        dark: light lines on a dark ground.

    Returns:
        a PNG file, 1000 x 720 pixels for each panel.
    """
    scheme = DARK if dark else LIGHT
    figure, all_axes = new_figure(5 * len(panels), 3.6, len(panels), scheme)
    for axes, panel in zip(all_axes, panels, strict=True):
        drawn = False
        for (name, history), colour in zip(
            histories.items(), (scheme.first, scheme.second), strict=False
        ):
            series = history.loss if panel == "loss" else history.miou
            label = name if len(histories) > 1 else None
            if series:
                (_draw_loss if panel == "loss" else _draw_miou)(axes, series, colour, label)
                drawn = True
        style(axes, "training loss" if panel == "loss" else "validation mIoU", scheme)
        axes.set_xlabel("optimiser step", color=scheme.ink)
        if not drawn:
            axes.text(
                0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=scheme.ink
            )
            continue
        axes.set_xlim(left=0)
        if len(histories) > 1:
            axes.legend(frameon=False, labelcolor=scheme.ink, fontsize=9)
        if panel == "miou":
            axes.margins(y=0.15)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    return png(figure)


def _draw_loss(axes: Axes, series: Series, colour: str, label: str | None) -> None:
    steps, values = np.array(series).T
    smooth = running_mean(values)
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
    axes.plot(steps, smooth, color=colour, linewidth=2, label=label)
    top = max(smooth.max() * 1.15, np.quantile(values, 0.98) * 1.05)
    axes.set_ylim(0, max(top, axes.get_ylim()[1] if len(axes.lines) > 2 else 0))


def _draw_miou(axes: Axes, series: Series, colour: str, label: str | None) -> None:
    steps, values = np.array(series).T
    best = int(values.argmax())
    axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=4, label=label)
    axes.plot(steps[best], values[best], "o", color=colour, markersize=8)
    axes.annotate(
        f"best {100 * values[best]:.1f} %",
        (steps[best], values[best]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="right" if best > 0 else "left",
        color=colour,
        weight="bold",
    )


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over about a twentieth of the values around each, fewer at both ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], values.cumsum()])
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)


# --- frequency sweeps --------------------------------------------------------------------


def draw_sweep(
    points: Sequence[Variant],
    converted: Mapping[str, float],
    retrained: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> bytes:
    """mIoU of each point of a sweep: a line over k on the left, bars for bands on the right.

    Args:
        points: of the sweep.
        converted: mIoU in 0..1 by name of the point, without retraining.
        retrained: by name, the mIoU of each seed of a network trained with that band; drawn as
            the mean with a bar from the lowest to the highest.
        title: of the figure.

    Returns:
        a PNG file, 200 dots an inch.
    """
    seeds = {name: list(values) for name, values in (retrained or {}).items() if values}
    panels = [
        (kind, title_, [p for p in points if p.kind == kind and p.name in {*converted, *seeds}])
        for kind, title_ in (("k", "mIoU against k"), ("band", "mIoU by band"))
    ]
    panels = [panel for panel in panels if panel[2]] or [("k", "nothing measured", [])]
    figure, all_axes = new_figure(6.2 * len(panels), 4.4, len(panels), LIGHT)
    for axes, (kind, text, shown) in zip(all_axes, panels, strict=True):
        bars = kind == "band"
        for values, colour, marker, label, side in (
            ({n: [v] for n, v in converted.items()}, LIGHT.first, "o", "without retraining", -1),
            (seeds, LIGHT.second, "s", "retrained with this band", 1),
        ):
            place = side * (0.2 if seeds else 0) if bars else 0.0
            _sweep_series(axes, shown, values, place, bars, colour, marker, label, bool(seeds))
            for point in points:
                if point.kind in ("trained", "removed") and point.name in values:
                    _reference(axes, point, statistics.mean(values[point.name]), colour, label)
        axes.set_xticks(range(len(shown)), [p.name.removeprefix("k=") for p in shown])
        axes.set_xlim(-0.6, max(len(shown) - 0.4, 0.6))
        axes.margins(y=0.18)
        style(axes, text, LIGHT, grid="y")
        axes.set_xlabel("band of both axes, or rows,columns" if bars else "k", color=LIGHT.ink)
    all_axes[0].set_ylabel("mIoU %", color=LIGHT.ink)
    handles, labels = all_axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False,
            labelcolor=LIGHT.ink,
        )  # fmt: skip
    if title:
        figure.suptitle(title, color=LIGHT.ink, fontsize=11)
    return png(figure)


def _sweep_series(
    axes: Axes,
    points: Sequence[Variant],
    values: Mapping[str, Sequence[float]],
    place: float,
    bars: bool,
    colour: str,
    marker: str,
    label: str,
    crowded: bool,
) -> None:
    found = [(i + place, [100 * v for v in values[p.name]]) for i, p in enumerate(points)
             if p.name in values]  # fmt: skip
    if not found:
        return
    xs, means = [x for x, _ in found], [statistics.mean(v) for _, v in found]
    spread = [
        [mean - min(v) for mean, (_, v) in zip(means, found, strict=True)],
        [max(v) - mean for mean, (_, v) in zip(means, found, strict=True)],
    ]
    error = spread if any(len(v) > 1 for _, v in found) else None
    if bars:
        width = 0.36 if crowded else 0.6
        axes.bar(xs, means, width, color=colour, label=label, yerr=error, capsize=3, zorder=2)
    else:
        axes.errorbar(
            xs, means, yerr=error, fmt=f"{marker}-", color=colour, capsize=3, label=label, zorder=3
        )
    for x, mean in zip(xs, means, strict=True):
        axes.annotate(
            f"{mean:.1f}",
            (x, 0 if bars else mean),  # at the foot of a bar nothing else is drawn
            xytext=(0, 4 if bars else -15 if crowded and marker == "o" else 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            weight="bold" if bars else "normal",
            color="white" if bars else LIGHT.ink,
            zorder=4,
        )


def _reference(axes: Axes, point: Variant, value: float, colour: str, label: str) -> None:
    """A horizontal line: the network as it was trained, or without its attention."""
    suffix = ", retrained" if label.startswith("retrained") else ""
    axes.axhline(
        100 * value,
        color=colour,
        linestyle="--" if point.kind == "trained" else ":",
        linewidth=1.3,
        zorder=1,
        label=f"{point.name}{suffix} ({100 * value:.1f} %)",
    )


# --- calibration -------------------------------------------------------------------------

_LONGEST_LEGEND = 12  # modules; more are distinguished by colour alone


def draw_calibration(calibration: Calibration, *, dark: bool = False) -> bytes:
    """Energy inside the k x k lowest frequencies, and error, against k; one line per module.

    The chosen k is a large dot. Modules go from the first (dark blue) to the last (yellow).

    Returns:
        a PNG file, 2400 pixels wide.
    """
    scheme = DARK if dark else LIGHT
    figure, (left, right) = new_figure(12, 4.6, 2, scheme)
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
        style(axes, title, scheme)
        axes.set_xlabel("k, low frequencies kept per axis", color=scheme.ink)
        axes.set_ylabel(unit, color=scheme.ink)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
    right.set_yscale("log")
    right.minorticks_off()
    if calibration.baseline is None:
        right.axhline(calibration.tolerance or 1e-12, color=scheme.ink, linestyle="--", linewidth=1)
        right.annotate(
            f"tolerance {calibration.tolerance:g}",
            (1, calibration.tolerance or 1e-12),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=scheme.ink,
            fontsize=9,
        )
    if 1 < len(names) <= _LONGEST_LEGEND:
        handles, labels = left.get_legend_handles_labels()
        figure.legend(
            handles,
            [_short(label, labels) for label in labels],
            loc="outside right upper",
            frameon=False,
            labelcolor=scheme.ink,
            fontsize=8,
        )
    return png(figure)


def _short(name: str, names: list[str]) -> str:
    """A name without the parts at both ends that all names share."""
    parts = [other.split(".") for other in names]
    mine = name.split(".")
    while len(mine) > 1 and all(len(p) > 1 and p[0] == mine[0] for p in parts):
        mine, parts = mine[1:], [p[1:] for p in parts]
    while len(mine) > 1 and all(len(p) > 1 and p[-1] == mine[-1] for p in parts):
        mine, parts = mine[:-1], [p[:-1] for p in parts]
    return ".".join(mine)
