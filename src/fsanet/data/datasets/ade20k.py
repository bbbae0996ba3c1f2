"""ADE20K in the layout of the 2016 scene parsing challenge: 150 classes, 0 = no label.

Source: Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsanet.data.datasets.class_names import ADE20K
from fsanet.data.datasets.downloads import missing
from fsanet.data.datasets.pairs import IGNORE, IdTable, Listing, PairedImages, Problem, pair_up
from fsanet.errors import InputError

__all__ = ["ADE20K_ID_TABLE", "COUNTS", "Ade20k", "check_object_info", "list_split"]

#: 0 is no label; 1..150 become 0..149.
ADE20K_ID_TABLE = IdTable("ADE20K", {0: IGNORE, **{value: value - 1 for value in range(1, 151)}})

#: Published numbers of images.
COUNTS = {"training": 20210, "validation": 2000}

_FOLDERS = {"train": "training", "val": "validation"}
_ARCHIVE = "ADEChallengeData2016"


class Ade20k(PairedImages):
    """ADE20K: ``images/{training,validation}/*.jpg`` with ``annotations/.../*.png``.

    Sizes differ. File ids 1..150 become 0..149 and 0 becomes 255. The labels of the challenge's
    test images are not published.

    Args:
        root: the folder ``ADEChallengeData2016``, or the one it is in.
        split: ``"train"`` (20210 images) or ``"val"`` (2000).
        transform: called as ``transform(image, mask)``.

    Raises:
        InputError: as `PairedImages`; for a split that is not there the line says what to
            download.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        if split not in _FOLDERS:
            raise InputError(f"split={split!r}: ADE20K has {', '.join(_FOLDERS)}")
        listing = list_split(Path(root), _FOLDERS[split])
        super().__init__(
            Path(root), listing, label_set=ADE20K, ids=ADE20K_ID_TABLE, transform=transform
        )
        self.split = split


def list_split(root: Path, folder: str) -> Listing:
    """The pairs of training or validation.

    Raises:
        MissingData: its images or labels are not there.
    """
    base = _base(root)
    found = []
    for part, ending in (("images", ".jpg"), ("annotations", ".png")):
        files = {path.stem: path for path in (base / part / folder).glob(f"*{ending}")}
        if not files:
            raise missing(root, "ade20k", base / part / folder, (f"{_ARCHIVE}.zip",))
        found.append(files)
    return pair_up(*found)


def check_object_info(root: Path) -> list[Problem]:
    """Whether ``objectInfo150.txt``, where it is, lists the classes in the order known here.

    Each of its rows ends with the names of one class; ours has to be among them.
    """
    file = _base(root) / "objectInfo150.txt"
    if not file.is_file():
        return []
    names: dict[int, str] = {}
    for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        # number, ratio, counts in training and validation, names
        if row := re.match(r"\s*(\d+)\s+[\d.]+\s+\d+\s+\d+\s+(.+?)\s*$", line):
            names[int(row[1])] = row[2]
    for number, ours in enumerate(ADE20K.classes, 1):
        listed = names.get(number, "nothing")
        if ours not in re.split(r"\s*[,;]\s*", listed.lower()):
            text = f"{file}: class {number} is {listed!r}, expected {ours!r}: not the 150 classes"
            return [Problem("classes", str(file), text)]
    return []


def _base(root: Path) -> Path:
    return root if (root / "images").is_dir() else root / _ARCHIVE
