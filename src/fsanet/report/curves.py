"""The course of a training run: read from its metrics file, drawn as a picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fsanet.errors import InputError

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
        InputError: the file is missing or not of that form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return History(loss=_column(rows, "train/loss"), miou=_column(rows, "val/miou"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a metrics file of a training run ({error})") from error


def _column(rows: list[dict[str, str]], name: str) -> Series:
    values = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return tuple(sorted((step, value) for step, value in values if math.isfinite(value)))


def draw_curves(history: History, *, dark: bool = False) -> bytes:
    """Loss and validation mIoU against steps, side by side.

    Args:
        history: what to draw; an empty series leaves an empty panel that says so.
        dark: light lines on a dark ground.

    Returns:
        a PNG file, 2000 x 720 pixels.
    """
    ink, ground, grid = (
        ("#d7dce2", "#171b21", "#333b45") if dark else ("#2b3138", "#fff", "#e3e7eb")
    )
    line, accent = ("#6cb0ff", "#ffb454") if dark else ("#1f6fc4", "#d9730d")
    figure = Figure(figsize=(10, 3.6), dpi=200, layout="constrained", facecolor=ground)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    for axes, name in zip(panels, ("training loss", "validation mIoU"), strict=True):
        _style(axes, name, ink=ink, ground=ground, grid=grid)
    loss, miou = panels
    if history.loss:
        steps, values = np.array(history.loss).T
        smooth = _smoothed(values)
        loss.plot(steps, values, color=line, alpha=0.3, linewidth=1)
        loss.plot(steps, smooth, color=line, linewidth=2)
        loss.set_ylim(0, max(smooth.max() * 1.15, np.quantile(values, 0.98) * 1.05))
    if history.miou:
        steps, values = np.array(history.miou).T
        best = int(values.argmax())
        miou.plot(steps, values, color=line, linewidth=2, marker="o", markersize=4)
        miou.plot(steps[best], values[best], "o", color=accent, markersize=8)
        miou.annotate(
            f"best {100 * values[best]:.1f} %",
            (steps[best], values[best]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="right" if best > 0 else "left",
            color=accent,
            weight="bold",
        )
        miou.set_ylim(0, 1.12)  # room for the label
        miou.set_yticks(np.linspace(0, 1, 6), [f"{v} %" for v in range(0, 101, 20)])
    for axes, series in zip(panels, (history.loss, history.miou), strict=True):
        if not series:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=ink)
        else:
            axes.set_xlim(left=0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=ground, metadata={"Software": None})
    return stream.getvalue()


def _style(axes: Axes, name: str, *, ink: str, ground: str, grid: str) -> None:
    axes.set_facecolor(ground)
    axes.set_title(name, color=ink, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("optimiser step", color=ink)
    axes.tick_params(colors=ink, length=0)
    axes.grid(color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over about a twentieth of the run, narrower at both ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], values.cumsum()])
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)
