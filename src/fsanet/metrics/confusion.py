"""What an evaluation leaves as files: tables by class, the confusion matrix as a picture."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from fsanet.files import write_json, write_text, write_whole
from fsanet.metrics.scores import Scores

__all__ = ["class_rows", "draw_confusion", "markdown_table", "write_scores"]

_WITH_NUMBERS = 40  # classes up to which a cell has room for its number


def write_scores(scores: Scores, out: Path, about: dict[str, Any]) -> list[Path]:
    """Write ``scores.json``, ``classes.md``, ``classes.csv``, ``confusion.csv``, ``confusion.png``.

    Args:
        scores: of one evaluation.
        out: folder, created if need be.
        about: what else the JSON file and the caption of the table are to say: model, split.

    Raises:
        InputError: the folder cannot be written to.
    """
    rows = class_rows(scores)
    caption = ", ".join(f"{name}: {value}" for name, value in about.items() if _short(value))
    table = f"{caption}\n\n{markdown_table(rows)}\n" + _trimap_table(scores)
    header = [["label \\ prediction", *scores.classes]]
    counts = [[name, *row] for name, row in zip(scores.classes, scores.confusion, strict=True)]
    content = about | scores.as_dict() | {"confusion": [list(row) for row in scores.confusion]}
    picture = draw_confusion(scores)
    return [
        write_text(out / "classes.md", table),
        write_text(out / "classes.csv", _csv(rows)),
        write_text(out / "confusion.csv", _csv(header + counts)),
        write_whole(out / "confusion.png", lambda stream: stream.write(picture)),
        write_json(out / "scores.json", content),  # last: where it is, all is
    ]


def class_rows(scores: Scores) -> list[list[str]]:
    """A header, a row a class, and a last row of means; shares in percent, "" for none."""
    edges = scores.boundary
    header = ["class", "IoU %", "accuracy %", *(["boundary IoU %"] if edges else []), "pixels"]
    rows = [header]
    for index, name in enumerate(scores.classes):
        edge = [_percent(edges.iou[index])] if edges else []
        shares = [_percent(scores.iou[index]), _percent(scores.accuracy[index]), *edge]
        rows.append([name, *shares, str(scores.pixels[index])])
    edge = [_percent(edges.mean_iou)] if edges else []
    means = [_percent(scores.miou), _percent(scores.mean_accuracy), *edge]
    rows.append(["mean", *means, str(sum(scores.pixels))])
    return rows


def markdown_table(rows: list[list[str]]) -> str:
    """Rows, the first a header, as a Markdown table; numbers to the right.

    >>> print(markdown_table([["class", "IoU %"], ["road | path", "97.10"]]))
    | class | IoU % |
    | --- | ---: |
    | road \\| path | 97.10 |
    """
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def _trimap_table(scores: Scores) -> str:
    edges = scores.boundary
    if edges is None:
        return ""
    rows = [["trimap width (pixels)", "mIoU %", "pixel accuracy %", "pixels"]]
    for width, miou in edges.trimap_miou.items():
        accuracy, pixels = edges.trimap_accuracy[width], edges.trimap_pixels[width]
        rows.append([str(width), _percent(miou), _percent(accuracy), str(pixels)])
    return f"\n{markdown_table(rows)}\n"


def draw_confusion(scores: Scores) -> bytes:
    """The confusion matrix, each row divided by its labelled pixels, in percent.

    Up to 40 classes the cells hold numbers (those that round to 0 are left out). The colour goes
    with the square root, so that confusions of a few percent are seen. A class without labelled
    pixels has a grey row.

    Returns:
        a PNG file; its size grows with the number of classes.
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
    axes.set_title(
        f"Share of each class's pixels in %, mIoU {_percent(scores.miou) or '-'} %",
        loc="left",
        fontsize=11,
        weight="bold",
    )
    if numbers:
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            dark = share > 40
            axes.text(
                column,
                row,
                f"{share:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#22303c",
            )
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 6 / side), ticks=[0, 1, 5, 20, 50, 100])
    bar.outline.set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _csv(rows: list[list[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
