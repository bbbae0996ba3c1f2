"""PASCAL VOC 2012, and its training set augmented by the Semantic Boundaries Dataset (SBD).

The 10582 images of ``train_aug`` are the union of SBD's train and val (11355) and VOC's train
(1464), without VOC's val (1449). An image of VOC's train keeps VOC's own, finer labels.

torchvision's `VOCSegmentation` and `SBDataset` each have one half; their union, the PNG form of
SBD's labels, and what is missing from it are the subject here.

Sources: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; Hariharan et
al., "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsanet.data.datasets.class_names import VOC
from fsanet.data.datasets.downloads import SBD_SITE, VOC_SITE, missing
from fsanet.data.datasets.pairs import IGNORE, IdTable, Listing, Pair, PairedImages, Problem
from fsanet.data.datasets.sbd import require_scipy
from fsanet.errors import InputError

__all__ = ["COUNTS", "VOC_ID_TABLE", "VocAug", "list_split"]

#: 0 is the background, 1..20 are objects, 255 their outlines.
VOC_ID_TABLE = IdTable("VOC", {IGNORE: IGNORE, **{value: value for value in range(21)}})

#: Published numbers of images.
COUNTS = {"train": 1464, "val": 1449, "train_aug": 10582}

_VOC_ARCHIVE, _SBD_ARCHIVE = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
# Where SBD is commonly unpacked, and where lists of train_aug are commonly kept.
_SBD_FOLDERS = (
    "benchmark_RELEASE/dataset",
    "VOCdevkit/VOCaug/dataset",
    "VOCaug/dataset",
    "sbd",
    "SBD",
)
_LISTS = (
    "Segmentation/train_aug.txt",
    "Segmentation/trainaug.txt",
    "SegmentationAug/train_aug.txt",
)


class VocAug(PairedImages):
    """VOC 2012 with 21 classes, 0 being the background, and SBD.

    Sizes differ, the longer side has 500 pixels. SBD's labels are taken from
    ``VOC2012/SegmentationClassAug/*.png`` where that folder is, else from SBD's ``cls/*.mat``
    (SciPy, extra ``voc``).

    Args:
        root: folder of ``VOCdevkit``, or of ``VOC2012``, or ``VOC2012`` itself.
        split: ``"train"`` (1464 images), ``"val"`` (1449) or ``"train_aug"`` (10582).
        sbd: SBD's folder, the one with ``cls``; by default looked for in ``root``.
        transform: called as ``transform(image, mask)``.

    Raises:
        InputError: as `PairedImages`; for a split that is not there the line says what to
            download.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train_aug",
        *,
        sbd: str | Path | None = None,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        if split not in COUNTS:
            raise InputError(f"split={split!r}: VOC has {', '.join(COUNTS)}")
        listing = list_split(Path(root), split, None if sbd is None else Path(sbd))
        if any(p.labels is not None and p.labels.suffix == ".mat" for p in listing.pairs):
            require_scipy()
        lacking = [p for p in listing.problems if p.kind in ("no image", "leak")]
        if lacking:
            raise InputError(lacking[0].message)
        super().__init__(Path(root), listing, label_set=VOC, ids=VOC_ID_TABLE, transform=transform)
        self.split = split


def list_split(root: Path, split: str, sbd: Path | None = None) -> Listing:
    """The pairs of train, val or train_aug.

    Raises:
        MissingData: VOC, or for train_aug SBD, is not there.
        InputError: a list of names cannot be read.
    """
    voc = _voc_folder(root)
    own = voc / "SegmentationClass"
    for part in (voc / "JPEGImages", own, _list(voc, "train"), _list(voc, "val")):
        if not part.exists():
            raise missing(root, "voc", part, (_VOC_ARCHIVE,), VOC_SITE)
    if split != "train_aug":
        names = _names(_list(voc, split))
        return _listing(voc, names, {name: own / f"{name}.png" for name in names})
    train, val = _names(_list(voc, "train")), set(_names(_list(voc, "val")))
    names, others, ending, problems = _augmented(root, voc, sbd, val)
    labels = {name: others / f"{name}{ending}" for name in names}
    labels |= {name: own / f"{name}.png" for name in train}
    listing = _listing(voc, sorted({*names, *train} - val), labels)
    return Listing(listing.pairs, problems + listing.problems)


def _augmented(
    root: Path, voc: Path, sbd: Path | None, val: set[str]
) -> tuple[list[str], Path, str, list[Problem]]:
    """Names with SBD labels, their folder, their ending, and a list that leaks val."""
    pngs = voc / "SegmentationClassAug"
    if sbd is None and pngs.is_dir():
        for file in (voc / "ImageSets" / name for name in _LISTS):
            if file.is_file():
                names = _names(file)
                leaked = sorted(val.intersection(names))
                text = f"{file}: {len(leaked)} images of VOC's val, the first {leaked[:1]}"
                problem = Problem("leak", str(file), f"{text}; take them out of the list")
                return names, pngs, ".png", [problem] if leaked else []
        return sorted(_stems(pngs, ".png")), pngs, ".png", []
    folders = [root / name for name in _SBD_FOLDERS] if sbd is None else [sbd]
    for folder in folders:
        if (folder / "cls").is_dir():
            names = [*_names(folder / "train.txt"), *_names(folder / "val.txt")]
            return names, folder / "cls", ".mat", []
    if sbd is not None:
        raise InputError(f"{sbd}: no folder cls; give SBD's folder benchmark_RELEASE/dataset")
    raise missing(root, "voc", folders[0] / "cls", (_SBD_ARCHIVE,), SBD_SITE)


def _listing(voc: Path, names: list[str], labels: dict[str, Path]) -> Listing:
    """Pairs of the names whose files are there. Folders are read once, not asked per file."""
    images = voc / "JPEGImages"
    known = _stems(images, ".jpg")
    there = {folder: set(os.listdir(folder)) for folder in {p.parent for p in labels.values()}}
    pairs, problems = [], []
    for name in names:
        image, mask = images / f"{name}.jpg", labels[name]
        if name not in known:
            text = f"{image}: no such image, but the lists name it; unpack {_VOC_ARCHIVE} again"
            problems.append(Problem("no image", str(image), text))
        elif mask.name not in there[mask.parent]:
            text = f"{image}: image has no labels {mask}"
            problems.append(Problem("no labels", str(image), text))
        else:
            pairs.append(Pair(name, image, mask))
    return Listing(pairs, problems)


def _voc_folder(root: Path) -> Path:
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((place for place in places if (place / "JPEGImages").is_dir()), places[0])


def _list(voc: Path, split: str) -> Path:
    return voc / "ImageSets" / "Segmentation" / f"{split}.txt"


def _stems(folder: Path, ending: str) -> set[str]:
    return {name.removesuffix(ending) for name in os.listdir(folder) if name.endswith(ending)}


def _names(file: Path) -> list[str]:
    """First word of each line, without folders and extension, as all the lists in use have it."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: list of names cannot be read; unpack it again") from error
    return [Path(line.split()[0]).stem for line in lines if line.strip()]
