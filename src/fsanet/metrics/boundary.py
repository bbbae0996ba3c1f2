"""How well edges between classes are kept: boundary IoU and trimap mIoU over a whole data set.

Sources: boundary IoU, arXiv 2103.16562, section 4; trimaps, Kohli, Ladicky and Torr, "Robust
higher order potentials for enforcing label consistency" (IJCV 2009), section 5.

Legend: B batch, H x W mask, C classes, T trimap widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from fsanet.errors import InputError, check_range
from fsanet.metrics.confusion import BoundaryScores, scores_of

__all__ = ["BoundaryQuality", "check_bands", "near_edges"]

_NONE_ABOVE, _NONE_BELOW = -1, 32767  # neutral for maximum and for minimum, as int16


class BoundaryQuality(Metric):
    """Boundary IoU and trimap mIoU, accumulated over batches and processes.

    *Boundary IoU* of a class: take its labelled pixels within d pixels of the contour of the
    labelled region, and its predicted pixels within d of the contour of the predicted region; the
    score is intersection over union of the two sets, counted over the whole data set (not averaged
    over images). d is ``ratio`` times the image diagonal, rounded, at least 1. Distances are those
    of d erosions by a 3 x 3 square, and the image border counts as a contour, as in the published
    implementation.

    *Trimap* of width w: labelled pixels with a pixel of another class at most w rows and w columns
    away, in the label. The score is mIoU from one confusion matrix of those pixels. Here the image
    border is no edge.

    Pixels labelled ``ignore_index`` belong to no set, in label or prediction, and create no
    contour: a class that only borders on them may well continue there.

    Args:
        classes: names, one per class id.
        ignore_index: label of pixels that do not count.
        ratio: d of boundary IoU as a fraction of the image diagonal.
        widths: trimap widths in pixels.

    Raises:
        InputError: a ratio outside 0..1, or a width below 1 or given twice.

    Source: arXiv 2103.16562; trimaps as in segmentation papers since 2009.
    """

    full_state_update = False
    hit: Tensor
    labelled: Tensor
    predicted: Tensor
    trimaps: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        *,
        ignore_index: int = 255,
        ratio: float = 0.02,
        widths: Sequence[int] = (1, 2, 4, 8, 16),
    ) -> None:
        super().__init__()
        check_bands(ratio, widths)
        self.classes = tuple(classes)
        self.ignore_index = ignore_index
        self.ratio = ratio
        self.widths = tuple(sorted(widths))
        count = len(self.classes)
        for name in ("hit", "labelled", "predicted"):
            self.add_state(name, torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")
        matrices = torch.zeros(len(self.widths), count, count, dtype=torch.long)
        self.add_state("trimaps", matrices, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count a batch of class ids (B, H, W), integer, and labels of the same shape."""
        count = len(self.classes)
        known = labels != self.ignore_index
        labels = torch.where(known, labels, -1).to(torch.int16)
        predictions = torch.where(known, predictions.to(labels.device), -1).to(torch.int16)
        height, width = labels.shape[-2:]
        reach = max(1, round(self.ratio * math.hypot(height, width)))
        inside = torch.zeros(height, width, dtype=torch.bool, device=labels.device)
        inside[reach : height - reach, reach : width - reach] = True
        label_band, prediction_band = (
            (near_edges(ids, (reach,))[0] | ~inside) & known for ids in (labels, predictions)
        )  # (B, H, W)
        both = label_band & prediction_band & (labels == predictions)
        self.hit += _histogram(labels, both, count)
        self.labelled += _histogram(labels, label_band, count)
        self.predicted += _histogram(predictions, prediction_band, count)
        pairs = labels.int() * count + predictions
        for matrix, band in zip(self.trimaps, near_edges(labels, self.widths), strict=True):
            matrix += _histogram(pairs, band, count * count).view(count, count)

    def compute(self) -> dict[str, Tensor]:
        """Counts over all processes: sizes of the pixel sets (C,), and matrices (T, C, C)."""
        return {name: getattr(self, name) for name in ("hit", "labelled", "predicted", "trimaps")}

    def scores(self) -> BoundaryScores:
        """Scores of everything counted so far, over all processes."""
        counts = {name: value.cpu() for name, value in self.compute().items()}
        classes = len(self.classes)  # torchmetrics squeezes the states where there is one class
        hit, labelled, predicted = (
            counts[name].reshape(classes).double() for name in ("hit", "labelled", "predicted")
        )
        absent = torch.where(labelled > 0, 0.0, torch.nan)
        iou = hit / (labelled + predicted - hit) + absent
        matrices = counts["trimaps"].reshape(len(self.widths), classes, classes)
        trimaps = {
            width: scores_of(matrix, self.classes)
            for width, matrix in zip(self.widths, matrices, strict=True)
        }
        return BoundaryScores(
            mean_iou=iou.nanmean().item(),
            iou=tuple(iou.tolist()),
            classes=self.classes,
            ratio=self.ratio,
            trimap_miou={width: scores.miou for width, scores in trimaps.items()},
            trimap_accuracy={width: scores.pixel_accuracy for width, scores in trimaps.items()},
            trimap_pixels={width: sum(scores.pixels) for width, scores in trimaps.items()},
        )


def _histogram(values: Tensor, chosen: Tensor, length: int) -> Tensor:
    """How often each of 0..length-1 occurs among the chosen values, (length,)."""
    # The others go to a bin of their own, which is much faster than indexing with a mask.
    binned = torch.where(chosen, values, length).flatten()
    return torch.bincount(binned, minlength=length + 1)[:length]


def near_edges(ids: Tensor, reaches: Sequence[int]) -> list[Tensor]:
    """Find pixels that have another class nearby.

    A pixel has a neighbour of another class if and only if the largest or the smallest class id
    around it is not its own. Two sliding extremes therefore serve all classes at once, at
    O(log reach) per pixel.

    Args:
        ids: int16 (..., H, W), -1 for no class.
        reaches: distances in pixels, ascending.

    Returns:
        For each reach a bool (..., H, W): true where a pixel has a class, and a pixel of another
        class lies at most that many rows and columns away.

    >>> near_edges(torch.tensor([[0, 0, 0, 1, -1, 0]], dtype=torch.int16), (1, 2))
    [tensor([[False, False,  True,  True, False, False]]), \
tensor([[False,  True,  True,  True, False,  True]])]
    """
    known = ids >= 0
    highest = ids  # -1 is already neutral for a maximum
    lowest = torch.where(known, ids, _NONE_BELOW)
    found, done = [], 0
    farthest = max(ids.shape[-2:])
    for distance in reaches:  # a window of reach a, then one of reach b, is one of reach a + b
        reach = min(distance, farthest)
        highest = _sliding(highest, reach - done, torch.maximum, _NONE_ABOVE)
        lowest = _sliding(lowest, reach - done, torch.minimum, _NONE_BELOW)
        done = reach
        found.append(known & ((highest > ids) | (lowest < ids)))
    return found


def _sliding(
    x: Tensor, reach: int, extreme: Callable[[Tensor, Tensor], Tensor], neutral: int
) -> Tensor:
    """Extreme over the (2 reach + 1)-square around each pixel; outside the map is neutral."""
    x = F.pad(x, (reach, reach, reach, reach), value=neutral)  # (..., H + 2r, W + 2r)
    for dim in (-1, -2):
        covered = 1  # pixels each value covers so far; doubled until the window is complete
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            length = x.shape[dim] - step
            x = extreme(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            covered += step
    return x  # (..., H, W)


def check_bands(ratio: float, widths: Sequence[int]) -> None:
    """Raise `InputError` for a ratio or widths that `BoundaryQuality` does not take."""
    check_range("boundary_ratio", ratio, 0.0, 1.0, above=True)
    for width in widths:
        check_range("trimap", width, 1, 10**9)
    if len(set(widths)) < len(widths):
        raise InputError(f"trimap={list(widths)}: give each width once")
