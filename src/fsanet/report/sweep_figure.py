"""The picture of a frequency sweep: mIoU against k, and band by band."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fsanet.report.sweeps import Point

__all__ = ["draw_sweep"]

_INK, _GRID = "#2b3138", "#e3e7eb"
_PLAIN, _AGAIN = "#1f6fc4", "#d9730d"


def draw_sweep(
    points: Sequence[Point],
    plain: Mapping[str, float],
    again: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> bytes:
    """mIoU of each point: lines over k at the left, bars for bands at the right.

    Args:
        points: of the sweep.
        plain: mIoU (0..1) by name of the point, with no retraining; points without are left out.
        again: by name, one mIoU a seed of networks trained anew; their mean is drawn, with a bar
            from the lowest to the highest.
        title: above everything.

    Returns:
        a PNG file, 200 dots an inch.
    """
    seeds = {name: list(values) for name, values in (again or {}).items() if values}
    groups = [("k", "mIoU against k, the low frequencies kept a side"), ("band", "mIoU by band")]
    shown = [
        (kind, text, [p for p in points if p.kind == kind and (p.name in plain or p.name in seeds)])
        for kind, text in groups
    ]
    shown = [group for group in shown if group[2]] or [("k", "no point measured", [])]
    figure = Figure(figsize=(6.2 * len(shown), 4.4), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (kind, text, group) in zip(panels, shown, strict=True):
        positions = list(range(len(group)))
        draw = _lines if kind == "k" else _bars
        draw(axes, positions, group, plain, seeds)
        axes.set_xticks(positions, [p.name.removeprefix("k=") for p in group])
        axes.set_xlim(-0.6, max(len(group) - 0.4, 0.6))
        _style(axes, text)
        _references(axes, points, plain, seeds)
        axes.set_xlabel("k" if kind == "k" else "band of both axes, or rows,columns", color=_INK)
    panels[0].set_ylabel("mIoU %", color=_INK)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=_INK
        )
    if title:
        figure.suptitle(title, color=_INK, fontsize=11)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _lines(
    axes: Axes,
    positions: list[int],
    group: list[Point],
    plain: Mapping[str, float],
    again: Mapping[str, list[float]],
) -> None:
    found = [(x, 100 * plain[p.name]) for x, p in zip(positions, group, strict=True)
             if p.name in plain]  # fmt: skip
    if found:
        axes.plot(*zip(*found, strict=True), "o-", color=_PLAIN, label="no retraining", zorder=3)
        for x, value in found:
            _number(axes, x, value, -15 if again else 8)  # the other line is mostly above
    middle, error = _spread(positions, group, again)
    if middle:
        axes.errorbar(
            [x for x, _ in middle],
            [value for _, value in middle],
            yerr=error,
            fmt="s-",
            color=_AGAIN,
            capsize=3,
            label="trained anew with this band",
            zorder=3,
        )


def _bars(
    axes: Axes,
    positions: list[int],
    group: list[Point],
    plain: Mapping[str, float],
    again: Mapping[str, list[float]],
) -> None:
    width = 0.36 if again else 0.6
    shift = width / 2 + 0.02 if again else 0.0
    found = [(x - shift, 100 * plain[p.name]) for x, p in zip(positions, group, strict=True)
             if p.name in plain]  # fmt: skip
    if found:
        xs, heights = [x for x, _ in found], [value for _, value in found]
        axes.bar(xs, heights, width, color=_PLAIN, label="no retraining", zorder=2)
        for x, value in found:
            _number_in_bar(axes, x, value)
    middle, error = _spread(positions, group, again)
    if middle:
        xs, heights = [x + shift for x, _ in middle], [value for _, value in middle]
        axes.bar(
            xs,
            heights,
            width,
            color=_AGAIN,
            label="trained anew with this band",
            yerr=error,
            capsize=3,
            zorder=2,
        )
        for x, value in zip(xs, heights, strict=True):
            _number_in_bar(axes, x, value)


def _spread(
    positions: list[int], group: list[Point], again: Mapping[str, list[float]]
) -> tuple[list[tuple[int, float]], list[list[float]]]:
    """Means in percent at their places, and how far the lowest and the highest seed are off."""
    middle: list[tuple[int, float]] = []
    below, above = [], []
    for x, point in zip(positions, group, strict=True):
        if point.name in again:
            values = [100 * value for value in again[point.name]]
            mean = statistics.mean(values)
            middle.append((x, mean))
            below.append(mean - min(values))
            above.append(max(values) - mean)
    return middle, [below, above]


def _references(
    axes: Axes,
    points: Sequence[Point],
    plain: Mapping[str, float],
    again: Mapping[str, list[float]],
) -> None:
    for point in points:
        if point.kind not in ("trained", "removed"):
            continue
        style = "--" if point.kind == "trained" else ":"
        values = {_PLAIN: plain.get(point.name)}
        if point.name in again:
            values[_AGAIN] = statistics.mean(again[point.name])
        for colour, value in values.items():
            if value is not None:
                more = ", trained anew" if colour == _AGAIN else ""
                axes.axhline(
                    100 * value, color=colour, linestyle=style, linewidth=1.3, zorder=1,
                    label=f"{point.name}{more} ({100 * value:.1f} %)",
                )  # fmt: skip


def _number(axes: Axes, x: float, value: float, above: int) -> None:
    axes.annotate(
        f"{value:.1f}",
        (x, value),
        xytext=(0, above),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=_INK,
        zorder=4,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )


def _number_in_bar(axes: Axes, x: float, value: float) -> None:
    """At the foot of the bar, where no line of reference and no spread is drawn."""
    axes.annotate(
        f"{value:.1f}",
        (x, 0),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        weight="bold",
        color="white",
        zorder=4,
    )


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, color=_INK, loc="left", fontsize=11, weight="bold")
    axes.tick_params(colors=_INK, length=0)
    axes.grid(color=_GRID, linewidth=0.8, axis="y")
    axes.set_axisbelow(True)
    axes.margins(y=0.18)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
