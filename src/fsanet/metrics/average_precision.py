"""Box and mask AP of a whole data set, as COCO defines it, over all processes.

Legend: N instances, H x W image.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from fsanet.errors import InputError
from fsanet.train.losses import world_size

__all__ = ["ApScores", "AveragePrecision"]

#: Names of COCO's numbers, and torchmetrics' for them.
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
    """COCO's numbers, fractions in 0..1; nan where the data set has no instance to count.

    Attributes:
        box: by the names of ``FIELDS``, for boxes.
        mask: the same for masks.
        box_per_class: AP of each class.
        mask_per_class: AP of each class.
        images: images counted.
        instances: labelled instances counted, crowds included.
    """

    box: Mapping[str, float]
    mask: Mapping[str, float]
    box_per_class: Mapping[str, float]
    mask_per_class: Mapping[str, float]
    images: int
    instances: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: null for nan."""

        def plain(values: Mapping[str, float]) -> dict[str, float | None]:
            return {name: v if v == v else None for name, v in values.items()}

        return {
            "box": plain(self.box),
            "mask": plain(self.mask),
            "box_per_class": plain(self.box_per_class),
            "mask_per_class": plain(self.mask_per_class),
            "images": self.images,
            "instances": self.instances,
        }


class AveragePrecision:
    """Collects detections and what is labelled, image by image; scores them all at the end.

    The numbers are torchmetrics' with the backend faster-coco-eval, set so that they are those of
    COCO's own code. Gathering is done here: that of torchmetrics 1.9 pairs the images of processes
    one to one, and so fails or drops images where one process has an image more than another.

    Args:
        classes: names; labels count from 1.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if importlib.util.find_spec("faster_coco_eval") is None:
            raise InputError("AP needs faster-coco-eval: pip install 'fsanet[coco]'")
        self.classes = tuple(classes)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._metric = _metric()
        self._ids: list[int] = []

    def update(self, detections: Sequence[Mapping[str, Tensor]], targets: Sequence[Any]) -> None:
        """Count images.

        Args:
            detections: for each image "boxes" (N, 4), "scores", "labels" (N,) and "masks", bool
                (N, H, W).
            targets: as in `fsanet.data.InstanceDataset`.
        """
        names = ("boxes", "scores", "labels", "masks")
        found = [{name: d[name].detach().cpu() for name in names} for d in detections]
        labelled = ("boxes", "labels", "masks", "iscrowd", "area")
        wanted = [{name: t[name].cpu() for name in labelled} for t in targets]
        for target in wanted:
            target["masks"] = target["masks"].bool()
        self._metric.update(found, wanted)
        self._ids += [int(target["image_id"]) for target in targets]

    def compute(self) -> ApScores | None:
        """Scores over all processes, the same on each; None where there was no image."""
        mine = dict(self._metric.metric_state)
        states, ids = [mine], [self._ids]
        world = world_size()
        if world > 1:
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, (mine, self._ids))
            states, ids = [part[0] for part in gathered], [part[1] for part in gathered]
        # In the order of the ids, so that ties between equal scores fall the same way however
        # the images were shared among processes.
        order = sorted(
            (number, process, index)
            for process, numbers in enumerate(ids)
            for index, number in enumerate(numbers)
        )
        if not order:
            return None
        merged = _metric()
        for name in mine:
            setattr(merged, name, [states[process][name][index] for _, process, index in order])
        merged._update_count = len(order)
        result = merged.compute()
        labelled = merged.groundtruth_labels
        return ApScores(
            box=_numbers(result, "bbox"),
            mask=_numbers(result, "segm"),
            box_per_class=self._per_class(result, "bbox"),
            mask_per_class=self._per_class(result, "segm"),
            images=len(order),
            instances=sum(len(labels) for labels in cast(list[Tensor], labelled)),
        )

    def _per_class(self, result: Mapping[str, Tensor], kind: str) -> dict[str, float]:
        labels = result["classes"].reshape(-1).tolist()
        values = result[f"{kind}_map_per_class"].reshape(-1).tolist()
        by_label = dict(zip(labels, values, strict=False))
        return {
            name: _number(by_label.get(label, -1.0))
            for label, name in enumerate(self.classes, start=1)
        }


def _metric() -> MeanAveragePrecision:
    metric = MeanAveragePrecision(
        # Both at once: asked for masks alone, torchmetrics leaves out images without a label,
        # and what is found there by mistake.
        iou_type=("bbox", "segm"),
        # COCO's own, in float64. torchmetrics' are float32, so that a recall of exactly 0.2
        # misses the threshold of 0.2.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
        class_metrics=True,
        backend="faster_coco_eval",
        sync_on_compute=False,
    )
    metric.warn_on_many_detections = False  # beyond 100 they do not count, as in COCO
    return metric


def _numbers(result: Mapping[str, Tensor], kind: str) -> dict[str, float]:
    return {ours: _number(float(result[f"{kind}_{theirs}"])) for ours, theirs in FIELDS.items()}


def _number(value: float) -> float:
    return value if value >= 0 else torch.nan  # COCO's -1: there is nothing to find
