"""ADE20K in the layout of the 2016 scene parsing challenge: 150 classes, 0 = unlabelled.

Sources: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017; class names: the 150
categories of the MIT Scene Parsing benchmark.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from fsanet.data.datasets.base import (
    Layout,
    Listing,
    PairedImages,
    Problem,
    Split,
    files_in,
    pair_up,
)
from fsanet.data.masks import IGNORE, IdTable, class_palette
from fsanet.errors import InputError
from fsanet.inputs import file_errors, read_text

_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket,
waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot,
animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light,
tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
clock, flag
"""
CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(","))
PALETTE = class_palette(None, 150)

#: 0 is unlabelled; 1..150 become 0..149.
ID_TABLE = IdTable("ADE20K", {0: IGNORE, **{value: value - 1 for value in range(1, 151)}})

_COUNTS = {"training": 20210, "validation": 2000}
_ARCHIVE = "ADEChallengeData2016"


class Ade20k(PairedImages):
    """ADE20K: ``images/{training,validation}/*.jpg`` with ``annotations/.../*.png``.

    Images differ in size. File ids 1..150 become 0..149 and 0 becomes 255. The labels of the
    challenge's test images are not published.

    Args:
        root: the folder ``ADEChallengeData2016``, or its parent.
        split: ``"train"`` (20210 images) or ``"val"`` (2000).

    Raises:
        InputError: see `PairedImages`; for a missing split the message says what to download.
    """

    classes, palette, ids = CLASSES, PALETTE, ID_TABLE

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
    ) -> None:
        folders = {"train": "training", "val": "validation"}
        if split not in folders:
            raise InputError(f"split={split!r}: ADE20K has {', '.join(folders)}")
        super().__init__(list_split(Path(root), folders[split]))


@file_errors()
def list_split(root: Path, folder: str) -> Listing:
    """List the pairs of ``"training"`` or ``"validation"``.

    Raises:
        MissingData: its images or labels are not there.
    """
    base = _base(root)
    images, labels = base / "images" / folder, base / "annotations" / folder
    image_files, label_files = files_in(images, ".jpg"), files_in(labels, ".png")
    for place, files in ((images, image_files), (labels, label_files)):
        if not files:
            raise LAYOUT.missing(root, place, (f"{_ARCHIVE}.zip",))
    listing = pair_up(image_files, label_files, labels)
    if folder == "training":  # once per data set
        return listing._replace(problems=[*check_object_info(root), *listing.problems])
    return listing


def check_object_info(root: Path) -> list[Problem]:
    """Check that ``objectInfo150.txt``, if it is there, lists the classes in the order used here.

    Each of its rows ends with the synonyms of one class; our name has to be among them.
    """
    file = _base(root) / "objectInfo150.txt"
    if not file.is_file():
        return []
    try:
        lines = read_text(file, "list").splitlines()
    except InputError as error:
        return [Problem("classes", str(file), str(error))]
    names: dict[int, str] = {}
    for line in lines:
        # number, ratio, counts in training and validation, names
        if row := re.match(r"\s*(\d+)\s+[\d.]+\s+\d+\s+\d+\s+(.+?)\s*$", line):
            names[int(row[1])] = row[2]
    for number, name in enumerate(CLASSES, 1):
        listed = names.get(number, "nothing")
        if name not in re.split(r"\s*[,;]\s*", listed.lower()):
            text = f"{file}: class {number} is {listed!r}, expected {name!r}: not the 150 classes"
            return [Problem("classes", str(file), text)]
    return []


def _base(root: Path) -> Path:
    return root if (root / "images").is_dir() else root / _ARCHIVE


def _splits(root: Path, **_: Any) -> list[Split]:
    return [
        Split(name, partial(list_split, root, name), count, ID_TABLE)
        for name, count in _COUNTS.items()
    ]


LAYOUT = Layout(
    name="ade20k",
    title="ADE20K (scene parsing challenge 2016)",
    site="http://sceneparsing.csail.mit.edu",
    archives={f"{_ARCHIVE}.zip": "images and labels; 1 GB"},
    tree="""\
    DIR/ADEChallengeData2016/images/{training,validation}/*.jpg       20210, 2000 images
    DIR/ADEChallengeData2016/annotations/{training,validation}/*.png  0 = unlabelled, 1..150
    """,
    notes="DIR may be the folder ADEChallengeData2016 itself. The full ADE20K, which has another "
    "layout (folders of scene categories, *_seg.png), is not this data set.",
    signs=(_ARCHIVE, "images/training", "annotations/training"),
    splits=_splits,
)
