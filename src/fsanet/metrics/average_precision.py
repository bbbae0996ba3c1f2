"""Box and mask AP over a whole data set, as COCO defines it, across all processes.

Legend: N instances, H x W image.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from fsanet.errors import InputError

__all__ = ["ApScores", "AveragePrecision"]

#: COCO's metrics, and the names torchmetrics gives them.
FIELDS = {
    "AP": "map",
    "AP50": "map_50",
    "AP75": "map_75",
    "AP_small": "map_small",
    "AP_medium": "map_medium",
    "AP_large": "map_large",
    "AR100": "mar_100",
}


@dataclass(frozen=True)
class ApScores:
    """COCO's metrics as fractions in 0..1; nan where the data set has no instance to count.

    Attributes:
        box: metrics of boxes, keyed as in ``FIELDS``.
        mask: metrics of masks, keyed as in ``FIELDS``.
        box_per_class: box AP keyed by class.
        mask_per_class: mask AP keyed by class.
        images: number of images.
        instances: number of labelled instances, crowds included.
    """

    box: Mapping[str, float]
    mask: Mapping[str, float]
    box_per_class: Mapping[str, float]
    mask_per_class: Mapping[str, float]
    images: int
    instances: int

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, with null in place of nan."""
        return {
            name: {key: v if v == v else None for key, v in value.items()}
            if isinstance(value, dict)
            else value
            for name, value in asdict(self).items()
        }


class AveragePrecision:
    """Collects detections and labelled instances image by image, and scores them at the end.

    The scores are those of torchmetrics with the backend faster-coco-eval, set up to equal those
    of COCO's own code. Images are gathered here, because torchmetrics 1.9 pairs the images of
    different processes one to one, and so fails or drops images if one process has more of them
    than another.

    Args:
        classes: names; label 1 is the first.

    Raises:
        InputError: faster-coco-eval is not installed.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise InputError("AP needs faster-coco-eval: pip install faster-coco-eval")
        self.classes = tuple(classes)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._metric = _metric()
        self._ids: list[int] = []

    def update(self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Any]) -> None:
        """Add images.

        Args:
            detections: for each image "boxes" (N, 4), "scores" and "labels" (N,), and "masks",
                bool (N, H, W).
            targets: for each image its target as in `InstanceDataset`.
        """
        names = ("boxes", "labels", "masks")
        found = [{n: d[n].detach().cpu() for n in (*names, "scores")} for d in detections]
        labelled = [{n: t[n].cpu() for n in (*names, "iscrowd", "area")} for t in targets]
        for target in labelled:
            target["masks"] = target["masks"].bool()
        self._metric.update(found, labelled)
        self._ids += [int(target["image_id"]) for target in targets]

    def compute(self) -> ApScores | None:
        """Scores over all processes, the same on each; None if there was no image."""
        mine = dict(self._metric.metric_state), self._ids
        parts: list[Any] = [mine]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
        # In the order of the ids, so that ties between equal scores are resolved the same way
        # however the images were distributed over the processes.
        order = sorted(
            (number, process, index)
            for process, (_, ids) in enumerate(parts)
            for index, number in enumerate(ids)
        )
        if not order:
            return None
        merged = _metric()
        for name in mine[0]:
            setattr(merged, name, [parts[process][0][name][index] for _, process, index in order])
        merged._update_count = len(order)
        result = merged.compute()
        labels = cast(list[Tensor], merged.groundtruth_labels)
        return ApScores(
            box=_overall(result, "bbox"),
            mask=_overall(result, "segm"),
            box_per_class=self._per_class(result, "bbox"),
            mask_per_class=self._per_class(result, "segm"),
            images=len(order),
            instances=sum(map(len, labels)),
        )

    def _per_class(self, result: Mapping[str, Tensor], kind: str) -> dict[str, float]:
        labels = result["classes"].reshape(-1).tolist()
        values = result[f"{kind}_map_per_class"].reshape(-1).tolist()
        by_label = dict(zip(labels, values, strict=False))
        return {
            name: _nan_for_none(by_label.get(label, -1.0))
            for label, name in enumerate(self.classes, start=1)
        }


def _metric() -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        # Both at once: with masks alone, torchmetrics drops images without a label, and with them
        # the false detections on them.
        iou_type=("bbox", "segm"),
        # COCO's own values, in float64. In torchmetrics they are float32, so that a recall of
        # exactly 0.2 misses the threshold 0.2.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        class_metrics=True,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False  # as in COCO, those beyond 100 do not count
    return metric


def _overall(result: Mapping[str, Tensor], kind: str) -> dict[str, float]:
    return {
        ours: _nan_for_none(float(result[f"{kind}_{theirs}"])) for ours, theirs in FIELDS.items()
    }


def _nan_for_none(value: float) -> float:
    return value if value >= 0 else torch.nan  # COCO reports -1 where there is nothing to find
