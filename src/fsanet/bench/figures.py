"""Time and memory against the number of positions or another axis, logarithmic, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from fsanet.bench.compare_layers import LayerReport, LayerRow, LayerSettings
from fsanet.bench.grow_layers import AXES, Growth, GrowthReport, Point
from fsanet.bench.measure import Timing
from fsanet.files import write_bytes
from fsanet.report.figures import LIGHT, new_figure, png, style

__all__ = ["draw_growth", "draw_scaling", "write_figures", "write_growth"]

Value = Callable[[LayerRow], float | None]

# The colours of Okabe and Ito, which readers with any colour vision can distinguish.
_OURS = {"dot": "#0072B2", "linear_softmax": "#009E73", "linear": "#56B4E9"}
_REGULAR = {"softmax": "#D55E00", "sdpa": "#E69F00", "sdpa-compiled": "#CC79A7"}
_OTHER, _PUBLISHED = "#8a939c", "#5b4a8a"
_MARKERS = "osD^vPX<>*ph"


def write_figures(report: LayerReport, folder: str | Path) -> list[Path]:
    """Write ``time.png``, ``memory.png`` and, if it was measured, ``training_time.png``.

    Raises:
        InputError: the folder cannot be written to.
    """
    figures: dict[str, tuple[str, Value]] = {
        "time": ("forward, milliseconds", lambda row: _milliseconds(row.forward)),
        "memory": (
            "peak memory of forward above the input, MiB",
            lambda row: None if row.findings.peak is None else row.findings.peak / 2**20,
        ),
    }
    if any(row.training is not None for row in report.rows):
        label = "forward + backward, milliseconds"
        figures["training_time"] = (label, lambda row: _milliseconds(row.training))
    drawn = {
        name: draw_scaling(report, axis=axis, value=value)
        for name, (axis, value) in figures.items()
    }
    return _write_all(drawn, folder)


def write_growth(report: GrowthReport, folder: str | Path) -> list[Path]:
    """Write ``grow_N.png`` and so on, one for each axis.

    Raises:
        InputError: the folder cannot be written to.
    """
    drawn = {
        f"grow_{growth.axis}": draw_growth(growth, report.environment) for growth in report.growths
    }
    return _write_all(drawn, folder)


def _write_all(drawn: Mapping[str, bytes], folder: str | Path) -> list[Path]:
    return [write_bytes(Path(folder) / f"{name}.png", content) for name, content in drawn.items()]


def _milliseconds(timing: Timing | None) -> float | None:
    return None if timing is None else 1e3 * timing.seconds.median


def draw_scaling(report: LayerReport, *, axis: str, value: Value) -> bytes:
    """Draw one line per layer, labelled at its right end.

    This library's layers are drawn thick, the floor dashed.

    Args:
        report: its rows are drawn.
        axis: what the vertical axis shows, with its unit.
        value: the value of a row; None or 0 is not drawn.

    Returns:
        A PNG file, 2200 pixels wide.
    """
    lines = _lines(report, value)
    figure, (axes,) = new_figure(11, max(5.0, 0.235 * len(lines) + 2), 1, LIGHT)
    figure.set_layout_engine("none")
    axes.set_position((0.075, 0.13, 0.585, 0.79))
    sizes = {h * w: f"{h * w:,}\n{h}x{w}" for h, w in report.sizes()}
    _draw_lines(axes, lines, axis, AXES["N"][0], sizes)
    if lines:
        _label_ends(axes, lines)
    s = report.settings
    about = f"C={s.channels}, batch {s.batch}, {_conditions(s, report.environment)}"
    figure.text(0.075, 0.02, about, fontsize=7, color=LIGHT.ink)
    return png(figure)


def draw_growth(growth: Growth, about: Mapping[str, str]) -> bytes:
    """Draw time and memory along an axis, of forward on the left, of training on the right.

    Args:
        growth: its lines are drawn; the legend says where one of them stopped, and why.
        about: the machine.

    Returns:
        A PNG file, 2200 pixels wide.
    """
    titles: dict[str, Value] = {
        "forward, ms": lambda row: _milliseconds(row.forward),
        "forward + backward, ms": lambda row: _milliseconds(row.training),
        "peak memory of forward, MiB": lambda row: _mebibytes(row.findings.peak),
        "peak memory of forward + backward, MiB": lambda row: _mebibytes(
            row.findings.training_peak
        ),
    }
    if not growth.settings.backward:
        titles = {title: value for title, value in titles.items() if "backward" not in title}
    rows = len(titles) // 2
    figure, panels = new_figure(11, 4 * rows + 1, 2, LIGHT, rows=rows)
    ticks = {point.number: _tick(growth, point) for point in growth.points}
    for axes, (title, value) in zip(panels, titles.items(), strict=True):
        lines = []
        for index, (name, line) in enumerate(growth.lines().items()):
            points = tuple((point.number, y) for point, row in line if (y := value(row)))
            if points:
                stop = next(((r, p.label) for p, r in line if r.findings.problem), None)
                lines.append(_line(name, line[0][1], points, stop, index))
        _draw_lines(axes, lines, title, AXES[growth.axis][0], ticks)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT.ink
    )
    s = growth.settings
    fixed = {
        "N": f"map {'x'.join(map(str, s.sizes[0]))}",
        "batch": f"batch {s.batch}",
        "channels": f"C={s.channels}",
    }
    words = ", ".join(text for axis, text in fixed.items() if axis != growth.axis)
    figure.suptitle(f"{words}, {_conditions(s, about)}", fontsize=8, color=LIGHT.ink)
    return png(figure)


def _tick(growth: Growth, point: Point) -> str:
    return f"{point.number:,}\n{point.label}" if growth.axis == "N" else point.label


def _mebibytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _conditions(settings: LayerSettings, about: Mapping[str, str]) -> str:
    return (
        f"{settings.dtype}, {about.get('device', settings.device)}, threads {settings.threads}, "
        f"torch {about.get('torch', '?')}, commit {about.get('commit', 'unknown')}"
    )


def _draw_lines(
    axes: Axes, lines: Sequence[_Line], title: str, x_label: str, ticks: Mapping[int, str]
) -> None:
    axes.set(xscale="log", yscale="log")
    style(axes, title, LIGHT)
    axes.set_xlabel(x_label, color=LIGHT.ink)
    size = 6.5 if len(ticks) < 6 else 5.5  # so that neighbours do not touch
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=size)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)
    for line in lines:
        n, y = np.array(line.points).T
        axes.plot(
            n,
            y,
            label=line.label,
            color=line.colour,
            linewidth=line.width,
            linestyle=line.dashes,
            marker=line.marker,
            markersize=3 + line.width,
            zorder=2 + line.width,
        )
    if not lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=LIGHT.ink)


@dataclass(frozen=True)
class _Line:
    """The points of a layer, and how they are drawn."""

    label: str
    points: tuple[tuple[int, float], ...]  # (N, value)
    colour: str
    width: float
    dashes: Any  # as matplotlib's linestyle
    marker: str


def _lines(report: LayerReport, value: Value) -> list[_Line]:
    lines: list[_Line] = []
    for name in dict.fromkeys(row.case.name for row in report.rows):
        rows = report.of(name)
        points = tuple((row.positions, y) for row in rows if (y := value(row)))
        if points:
            stop = next(((r, f"{r.height}x{r.width}") for r in rows if r.findings.problem), None)
            lines.append(_line(name, rows[0], points, stop, len(lines)))
    return lines


def _line(
    name: str,
    row: LayerRow,
    points: tuple[tuple[int, float], ...],
    stop: tuple[LayerRow, str] | None,
    index: int,
) -> _Line:
    """The look of a layer's line; ``stop`` is where it first had a problem, and in words."""
    label = name
    if stop is not None:
        reason = (stop[0].findings.problem or "").split(" at ")[0].split(" (")[0]
        label = f"{name}: {reason} at {stop[1]}"
    kind, _, numbers = name.partition("-")
    dashes = {"R2": "--", "R4": ":"}.get(numbers, "-")
    if name == "floor":
        return _Line(label, points, "#000000", 2.0, (0, (6, 3)), "_")
    if row.case.ours:
        return _Line(label, points, _OURS[kind], 2.4, dashes, "o")
    if name in _REGULAR:
        return _Line(label, points, _REGULAR[name], 1.8, "-", "s")
    if kind == "paper":
        return _Line(label, points, _PUBLISHED, 1.4, dashes, "D")
    return _Line(label, points, _OTHER, 1.0, "-", _MARKERS[index % len(_MARKERS)])


def _label_ends(axes: Axes, lines: Sequence[_Line]) -> None:
    """Write the names to the right of the axes, in the order of the lines' ends, spread out."""
    axes.figure.canvas.draw()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [tuple(to_axes.transform(line.points[-1])) for line in lines]
    order = sorted(range(len(lines)), key=lambda index: (ends[index][1], lines[index].label))
    heights = spread_out([ends[index][1] for index in order], 1.0 / max(len(lines) - 1, 18))
    for index, height in zip(order, heights, strict=True):
        line = lines[index]
        axes.annotate(
            line.label,
            xy=ends[index],
            xytext=(1.06, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=line.colour if line.width > 1 else "#59626b",
            weight="bold" if line.width > 2 else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": line.colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least ``gap``, by as little as possible in total.

    Neighbours that are too close become a block that keeps its mean, inside [0, 1] if it fits.

    >>> [round(h, 3) for h in spread_out([0.1, 0.5, 0.5], 0.1)]
    [0.1, 0.45, 0.55]
    """
    blocks: list[tuple[float, int]] = []  # (mean of "height - position in the block", count)
    for height in heights:
        mean, count = height, 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > mean:
            before, size = blocks.pop()
            mean = (before * size + (mean - size * gap) * count) / (size + count)
            count += size
        mean = max(min(mean, 1 - (count - 1) * gap), 0.0)
        blocks.append((mean, count))
    return [mean + index * gap for mean, count in blocks for index in range(count)]
