"""mIoU and related scores from one confusion matrix over a whole data set, and tables of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fsanet.errors import escaped

__all__ = ["BoundaryScores", "Scores", "class_rows", "markdown_table", "percent", "scores_of"]


@dataclass(frozen=True)
class BoundaryScores:
    """Quality near edges over a whole data set; fractions in 0..1.

    Attributes:
        mean_iou: mean boundary IoU over the classes; nan if nothing was labelled.
        iou: boundary IoU per class; nan for a class without a labelled pixel.
        classes: class names.
        ratio: width of the boundary band as a fraction of the image diagonal.
        trimap_miou: mIoU inside the trimap, keyed by its width in pixels.
        trimap_accuracy: pixel accuracy inside the trimap, keyed by its width in pixels.
        trimap_pixels: number of pixels inside the trimap, keyed by its width in pixels.
    """

    mean_iou: float
    iou: tuple[float, ...]
    classes: tuple[str, ...]
    ratio: float
    trimap_miou: dict[int, float]
    trimap_accuracy: dict[int, float]
    trimap_pixels: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, with null in place of nan."""
        return {
            "boundary_iou": _or_none(self.mean_iou),
            "ratio": self.ratio,
            "classes": dict(zip(self.classes, map(_or_none, self.iou), strict=True)),
            "trimap": [
                {
                    "width": width,
                    "miou": _or_none(miou),
                    "pixel_accuracy": _or_none(self.trimap_accuracy[width]),
                    "pixels": self.trimap_pixels[width],
                }
                for width, miou in self.trimap_miou.items()
            ],
        }


@dataclass(frozen=True)
class Scores:
    """Scores of one pass over a data set; fractions in 0..1.

    Attributes:
        miou: mean IoU over the classes. A class without a labelled pixel in the whole data set is
            left out of the mean (pixels wrongly assigned to it still count against the classes
            they belong to). nan if nothing was labelled.
        pixel_accuracy: fraction of the labelled pixels that are right.
        mean_accuracy: mean accuracy (recall) over the same classes as ``miou``.
        classes: class names.
        iou: IoU per class; nan for classes left out.
        accuracy: accuracy per class; nan for classes left out.
        pixels: labelled pixels per class.
        confusion: the matrix itself in pixels; rows are labels, columns are predictions.
        boundary: quality near edges, if it was requested.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    classes: tuple[str, ...]
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] = ()
    boundary: BoundaryScores | None = None

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, with null in place of nan; without the confusion matrix."""
        per_class = zip(self.classes, self.iou, self.accuracy, self.pixels, strict=True)
        values: dict[str, Any] = {
            "miou": _or_none(self.miou),
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "mean_accuracy": _or_none(self.mean_accuracy),
            "classes": {
                name: {"iou": _or_none(iou), "accuracy": _or_none(accuracy), "pixels": pixels}
                for name, iou, accuracy, pixels in per_class
            },
        }
        if self.boundary is not None:
            values["boundary"] = self.boundary.as_dict()
        return values


def scores_of(confusion: Tensor, classes: tuple[str, ...]) -> Scores:
    """Compute the scores of a confusion matrix.

    Args:
        confusion: pixels, (C, C); rows are labels, columns are predictions.
        classes: class names.

    Example:
        >>> scores = scores_of(torch.tensor([[3, 1], [0, 4]]), ("road", "sky"))
        >>> [round(value, 3) for value in scores.iou], round(scores.miou, 3)
        ([0.75, 0.8], 0.775)
    """
    matrix = confusion.detach().cpu().double()
    matrix = matrix.reshape(len(classes), len(classes))  # torchmetrics gives a scalar for one class
    hits = matrix.diagonal()  # (C,)
    labelled = matrix.sum(1)  # (C,)
    predicted = matrix.sum(0)  # (C,)
    # nan marks classes without labelled pixels; nanmean leaves them out.
    absent = torch.where(labelled > 0, 0.0, torch.nan)
    iou = hits / (labelled + predicted - hits) + absent
    accuracy = hits / labelled + absent
    return Scores(
        miou=iou.nanmean().item(),
        pixel_accuracy=(hits.sum() / labelled.sum()).item(),
        mean_accuracy=accuracy.nanmean().item(),
        classes=tuple(classes),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(pixels) for pixels in labelled.tolist()),
        confusion=tuple(tuple(row) for row in matrix.long().tolist()),
    )


def class_rows(scores: Scores) -> list[list[str]]:
    """A table: header, one row per class, and a row of means; percentages, "" for nan."""
    edges = scores.boundary
    rows = [["class", "IoU %", "accuracy %", *(["boundary IoU %"] if edges else []), "pixels"]]
    for index, name in enumerate(scores.classes):
        edge = [percent(edges.iou[index])] if edges else []
        shares = [percent(scores.iou[index]), percent(scores.accuracy[index]), *edge]
        rows.append([name, *shares, str(scores.pixels[index])])
    edge = [percent(edges.mean_iou)] if edges else []
    means = [percent(scores.miou), percent(scores.mean_accuracy), *edge]
    rows.append(["mean", *means, str(sum(scores.pixels))])
    return rows


def markdown_table(rows: list[list[str]]) -> str:
    """Format rows, the first of which is the header, as Markdown; numbers are right-aligned.

    >>> print(markdown_table([["class", "IoU %"], ["road | path", "97.10"]]))
    | class | IoU % |
    | --- | ---: |
    | road \\| path | 97.10 |
    """
    header, *body = [[escaped(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def percent(value: float) -> str:
    """A fraction as a percentage with two decimals; "" for nan."""
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no nan
