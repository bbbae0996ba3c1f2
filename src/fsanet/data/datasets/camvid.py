"""CamVid, the Cambridge-driving Labeled Video Database, in its 11-class form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsanet.data.datasets.folder import SegmentationFolder

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign/symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)


class CamVid(SegmentationFolder):
    """CamVid with 11 classes, ``root/<split>/images`` and ``root/<split>/masks``.

    Ids 0..10 follow the SegNet tutorial; unlabelled pixels are 255. Splits: ``"train"`` (367
    images), ``"val"`` (101), ``"test"`` (233), all 480 wide and 360 high.

    Args and errors are those of `SegmentationFolder`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(root, split=split, classes=CLASSES, palette=PALETTE, transform=transform)
