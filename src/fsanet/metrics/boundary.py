"""How well edges between classes are kept: boundary IoU and trimap mIoU of a whole data set.

Sources: boundary IoU, arXiv 2103.16562, section 4; trimaps, Kohli, Ladicky and Torr, "Robust
higher order potentials for enforcing label consistency" (IJCV 2009), section 5.

Legend: B batch, H x W mask, C classes, T trimap widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from fsanet.errors import InputError
from fsanet.metrics.scores import plain, scores_of

__all__ = ["BoundaryQuality", "BoundaryScores", "near_edges"]

_NONE_ABOVE, _NONE_BELOW = -1, 32767  # neutral for maximum and for minimum, as int16


@dataclass(frozen=True)
class BoundaryScores:
    """Quality near edges, over a whole data set; fractions in 0..1.

    Attributes:
        mean_iou: mean of the classes' boundary IoU; nan if nothing was labelled.
        iou: boundary IoU, one a class; nan for a class without a labelled pixel.
        classes: names.
        ratio: width of the band of boundary IoU, as a share of the image's diagonal.
        trimap_miou: mIoU inside the trimap, by its width in pixels.
        trimap_accuracy: share of right pixels inside the trimap, by its width in pixels.
        trimap_pixels: pixels inside the trimap, by its width in pixels.
    """

    mean_iou: float
    iou: tuple[float, ...]
    classes: tuple[str, ...]
    ratio: float
    trimap_miou: dict[int, float]
    trimap_accuracy: dict[int, float]
    trimap_pixels: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; null where there is no number."""
        return {
            "boundary_iou": plain(self.mean_iou),
            "ratio": self.ratio,
            "classes": {name: plain(iou) for name, iou in zip(self.classes, self.iou, strict=True)},
            "trimap": [
                {
                    "width": width,
                    "miou": plain(miou),
                    "pixel_accuracy": plain(self.trimap_accuracy[width]),
                    "pixels": self.trimap_pixels[width],
                }
                for width, miou in self.trimap_miou.items()
            ],
        }


class BoundaryQuality(Metric):
    """Counts boundary IoU and trimaps over batches and processes.

    *Boundary IoU* of a class: of its labelled pixels, those within d pixels of the contour of the
    labelled region; the same for the predicted ones; intersection over union of the two sets,
    both counted over the whole data set (not a mean over images). d is ``ratio`` times the image's
    diagonal, rounded, at least 1; distances are those of d erosions by a 3 x 3 square, and the
    frame of the image is a contour, as in the published implementation.

    *Trimap* of width w: labelled pixels with a pixel of another class at most w rows and w columns
    away, in the label. mIoU of one confusion matrix of those pixels. The frame is no edge here.

    Pixels of ``ignore_index`` belong to no set, in label or prediction, and make no contour: what
    borders on them alone is not known to be an edge.

    Args:
        classes: names, one an id.
        ignore_index: label of pixels that do not count.
        ratio: of boundary IoU.
        widths: of the trimaps, in pixels.

    Raises:
        InputError: a ratio outside 0..1, or a width below 1 or given twice.

    Source: arXiv 2103.16562; the trimaps are those of segmentation papers since 2009.
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
        if not 0 < ratio <= 1:
            raise InputError(f"boundary ratio {ratio}: give a share of the diagonal, above 0 to 1")
        if any(width < 1 for width in widths) or len(set(widths)) < len(widths):
            raise InputError(f"trimap widths {list(widths)}: give pixels from 1 up, each once")
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
        """Count a batch: class ids (B, H, W), integer, and labels of the same shape."""
        count = len(self.classes)
        known = labels != self.ignore_index
        labels = torch.where(known, labels, -1).to(torch.int16)
        predictions = torch.where(known, predictions.to(labels.device), -1).to(torch.int16)
        height, width = labels.shape[-2:]
        reach = max(1, round(self.ratio * math.hypot(height, width)))
        inside = torch.zeros(height, width, dtype=torch.bool, device=labels.device)
        inside[reach : height - reach, reach : width - reach] = True
        of_label, of_prediction = (
            (near_edges(ids, (reach,))[0] | ~inside) & known for ids in (labels, predictions)
        )  # (B, H, W)
        both = of_label & of_prediction & (labels == predictions)
        for state, ids, chosen in (
            (self.hit, labels, both),
            (self.labelled, labels, of_label),
            (self.predicted, predictions, of_prediction),
        ):
            state += _counts(ids, chosen, count)
        bands = near_edges(labels, self.widths)
        pairs = labels.int() * count + predictions
        for matrix, band in zip(self.trimaps, bands, strict=True):
            matrix += _counts(pairs, band, count * count).view(count, count)

    def compute(self) -> dict[str, Tensor]:
        """All that was counted, over all processes: sizes of sets (C,), and matrices (T, C, C)."""
        return {
            "hit": self.hit,
            "labelled": self.labelled,
            "predicted": self.predicted,
            "trimaps": self.trimaps,
        }

    def scores(self) -> BoundaryScores:
        """The scores of all that was counted, over all processes."""
        counts = {name: value.cpu() for name, value in self.compute().items()}
        one = len(self.classes)  # torchmetrics takes dimensions off where there is one class
        hit, labelled, predicted = (
            counts[name].reshape(one).double() for name in ("hit", "labelled", "predicted")
        )
        absent = torch.where(labelled > 0, 0.0, torch.nan)
        iou = hit / (labelled + predicted - hit) + absent
        matrices = counts["trimaps"].reshape(len(self.widths), one, one)
        inside = [scores_of(matrix, self.classes) for matrix in matrices]
        by_width = list(zip(self.widths, inside, strict=True))
        return BoundaryScores(
            mean_iou=iou.nanmean().item(),
            iou=tuple(iou.tolist()),
            classes=self.classes,
            ratio=self.ratio,
            trimap_miou={width: scores.miou for width, scores in by_width},
            trimap_accuracy={width: scores.pixel_accuracy for width, scores in by_width},
            trimap_pixels={width: sum(scores.pixels) for width, scores in by_width},
        )


def _counts(values: Tensor, chosen: Tensor, length: int) -> Tensor:
    """How often each of 0..length-1 occurs among the chosen values, (length,)."""
    # The rest goes to a bin of its own: much faster than to pick out the chosen ones.
    binned = torch.where(chosen, values, length).flatten()
    return torch.bincount(binned, minlength=length + 1)[:length]


def near_edges(ids: Tensor, reaches: Sequence[int]) -> list[Tensor]:
    """Where another class is near.

    Args:
        ids: int16 (..., H, W), -1 for no class.
        reaches: distances in pixels, ascending.

    Returns:
        for each reach a bool (..., H, W): true for a pixel of a class that has a pixel of another
        class at most so many rows and columns away.

    A pixel differs from a neighbour if the largest or the smallest class around it is not its own;
    so two sliding extremes do for all classes at once, at O(log reach) a pixel.

    >>> near_edges(torch.tensor([[0, 0, 0, 1, -1, 0]], dtype=torch.int16), (1, 2))
    [tensor([[False, False,  True,  True, False, False]]), \
tensor([[False,  True,  True,  True, False,  True]])]
    """
    known = ids >= 0
    highest = ids  # -1 is neutral for a maximum as it is
    lowest = torch.where(known, ids, _NONE_BELOW)
    found, done = [], 0
    for reach in reaches:  # a window of reach a, then one of reach b, is one of reach a + b
        highest = _sliding(highest, reach - done, torch.maximum, _NONE_ABOVE)
        lowest = _sliding(lowest, reach - done, torch.minimum, _NONE_BELOW)
        done = reach
        found.append(known & ((highest > ids) | (lowest < ids)))
    return found


def _sliding(
    x: Tensor, reach: int, extreme: Callable[[Tensor, Tensor], Tensor], neutral: int
) -> Tensor:
    """Extreme of the (2 reach + 1)-square around each pixel; outside of the map is neutral."""
    x = F.pad(x, (reach, reach, reach, reach), value=neutral)  # (..., H + 2r, W + 2r)
    for dim in (-1, -2):
        covered = 1  # pixels each value stands for so far; doubled until the window is whole
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            length = x.shape[dim] - step
            x = extreme(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            covered += step
    return x  # (..., H, W)
