"""The files an evaluation writes: tables per class, and the confusion matrix as CSV and PNG."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from fsanet.files import write_bytes, write_json, write_text
from fsanet.metrics.confusion import Scores, class_rows, markdown_table, percent

__all__ = ["HOW_TESTED", "draw_confusion", "write_scores"]

#: Options of `fsanet.train.evaluate` that a published figure has to come with.
HOW_TESTED = ("resize", "window", "stride", "scales", "flip", "precision")

_WITH_NUMBERS = 40  # up to this many classes a cell has room for its number


def write_scores(scores: Scores, out: Path, about: dict[str, Any]) -> list[Path]:
    """Write ``scores.json``, ``classes.md``, ``classes.csv``, ``confusion.csv``, ``confusion.png``.

    Args:
        scores: of one evaluation.
        out: folder, created if need be.
        about: further entries of the JSON file, such as model and split; texts and numbers among
            them also make the caption of the table.

    Raises:
        InputError: the folder cannot be written to.
    """
    rows = class_rows(scores)
    short = {k: v for k, v in about.items() if isinstance(v, str | int | float)}
    caption = ", ".join(f"{name}: {value}" for name, value in short.items())
    table = f"{caption}\n\n{markdown_table(rows)}\n" + _trimap_table(scores)
    header = [["label \\ prediction", *scores.classes]]
    counts = [[name, *row] for name, row in zip(scores.classes, scores.confusion, strict=True)]
    content = about | scores.as_dict() | {"confusion": [list(row) for row in scores.confusion]}
    picture = draw_confusion(scores)
    return [
        write_text(out / "classes.md", table),
        write_text(out / "classes.csv", _csv(rows)),
        write_text(out / "confusion.csv", _csv(header + counts)),
        write_bytes(out / "confusion.png", picture),
        write_json(out / "scores.json", content),  # last: if it exists, all of them do
    ]


def draw_confusion(scores: Scores) -> bytes:
    """Draw the confusion matrix, each row divided by its labelled pixels, in percent.

    With up to 40 classes the cells show numbers (except those that round to 0). The colour scale
    is a square root, which makes confusions of a few percent visible. The row of a class without
    labelled pixels is grey.

    Returns:
        A PNG file; its size grows with the number of classes.
    """
    count = len(scores.classes)
    matrix = np.array(scores.confusion, dtype=float).reshape(count, count)
    labelled = matrix.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(labelled > 0, 100 * matrix / labelled, np.nan)  # (C, C)
    numbers = count <= _WITH_NUMBERS
    cell = 0.42 if numbers else 0.16  # inches
    letters = 9 if numbers else 7  # points
    margin = 0.6 + 0.075 * letters / 9 * max(map(len, scores.classes))
    side = max(3.0, cell * count)
    figure = Figure(
        figsize=(side + margin + 0.9, side + margin + 0.5), dpi=140, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = colormaps["Blues"].with_extremes(bad="#d5d5d5")
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 100), aspect="equal")
    ticks = range(count)
    axes.set_xticks(ticks, scores.classes, rotation=90, fontsize=letters)
    axes.set_yticks(ticks, scores.classes, fontsize=letters)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.set_xlabel("prediction", weight="bold")
    axes.set_ylabel("label", weight="bold")
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#eceff2", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    title = f"Share of each class's pixels in %, mIoU {percent(scores.miou) or '-'} %"
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    for row, column in np.argwhere(shares >= 0.5) if numbers else ():
        share = shares[row, column]
        colour = "white" if share > 40 else "#22303c"
        place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(column, row, f"{share:.0f}", color=colour, **place)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 6 / side), ticks=[0, 1, 5, 20, 50, 100])
    bar.outline.set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _trimap_table(scores: Scores) -> str:
    edges = scores.boundary
    if edges is None:
        return ""
    rows = [["trimap width (pixels)", "mIoU %", "pixel accuracy %", "pixels"]]
    for width, miou in edges.trimap_miou.items():
        accuracy, pixels = edges.trimap_accuracy[width], edges.trimap_pixels[width]
        rows.append([str(width), percent(miou), percent(accuracy), str(pixels)])
    return f"\n{markdown_table(rows)}\n"


def _csv(rows: list[list[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
