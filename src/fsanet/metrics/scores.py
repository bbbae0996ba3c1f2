"""mIoU and its relatives from one confusion matrix of a whole data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fsanet.metrics.boundary import BoundaryScores


@dataclass(frozen=True)
class Scores:
    """What one pass over a data set gave; fractions in 0..1.

    Attributes:
        miou: mean of the classes' IoU. A class that has no labelled pixel in the whole data
            set is left out of the mean (pixels wrongly given to it still count against the
            classes they belong to). nan when nothing was labelled.
        pixel_accuracy: share of the valid pixels that are right.
        mean_accuracy: mean of the classes' accuracies (recall), over the same classes.
        classes: names.
        iou: one a class, nan for classes left out.
        accuracy: one a class, nan for classes left out.
        pixels: labelled pixels, one a class.
        confusion: the matrix itself in pixels, a row a label, a column a prediction.
        boundary: quality near edges, where it was asked for.
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
        """Plain values for JSON: a class left out has null for its numbers.

        The confusion matrix is not among them; "boundary" is, where it was asked for.
        """
        found = {
            "miou": plain(self.miou),
            "pixel_accuracy": plain(self.pixel_accuracy),
            "mean_accuracy": plain(self.mean_accuracy),
            "classes": {
                name: {"iou": plain(iou), "accuracy": plain(accuracy), "pixels": pixels}
                for name, iou, accuracy, pixels in zip(
                    self.classes, self.iou, self.accuracy, self.pixels, strict=True
                )
            },
        }
        return found if self.boundary is None else found | {"boundary": self.boundary.as_dict()}


def plain(value: float) -> float | None:
    """The value, or None for nan, which JSON does not have."""
    return value if value == value else None


def scores_of(confusion: Tensor, classes: tuple[str, ...]) -> Scores:
    """Scores of a confusion matrix (C, C): rows are labels, columns are predictions, in pixels.

    Example:
        >>> scores = scores_of(torch.tensor([[3, 1], [0, 4]]), ("road", "sky"))
        >>> [round(value, 3) for value in scores.iou], round(scores.miou, 3)
        ([0.75, 0.8], 0.775)
    """
    matrix = confusion.detach().cpu().double()
    hit = matrix.diagonal()  # (C,)
    labelled = matrix.sum(1)  # (C,)
    predicted = matrix.sum(0)  # (C,)
    # 0 / 0 = nan marks classes without labelled pixels; nanmean leaves them out.
    absent = torch.where(labelled > 0, 0.0, torch.nan)
    iou = hit / (labelled + predicted - hit) + absent
    accuracy = hit / labelled + absent
    return Scores(
        miou=iou.nanmean().item(),
        pixel_accuracy=(hit.sum() / labelled.sum()).item(),
        mean_accuracy=accuracy.nanmean().item(),
        classes=tuple(classes),
        iou=tuple(iou.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(pixels) for pixels in labelled.tolist()),
        confusion=tuple(tuple(row) for row in matrix.long().tolist()),
    )
