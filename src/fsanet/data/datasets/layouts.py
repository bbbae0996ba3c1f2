"""The splits of each known layout as `fsanet data check` looks at them, and which layout it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fsanet.data.datasets import ade20k, camvid, cityscapes, coco, voc
from fsanet.data.datasets.downloads import MissingData, missing
from fsanet.data.datasets.folder import _files, _listed
from fsanet.data.datasets.pairs import IGNORE, IdTable, Listing, Pair, Problem, pair_up
from fsanet.data.images import IMAGE_SUFFIXES
from fsanet.data.masks import MASK_SUFFIXES
from fsanet.errors import InputError

__all__ = ["LAYOUTS", "Split", "guess_layout", "splits_of"]

LAYOUTS = ("cityscapes", "ade20k", "voc", "coco", "camvid", "folder")


@dataclass(frozen=True)
class Split:
    """One split to check.

    Attributes:
        name: as the summary shows it.
        find: gives its pairs; raises `MissingData` if it is not there.
        expected: published number of images.
        ids: meaning of the values in its label files; ``None``: any.
        required: its absence is a problem.
        notes: filled by ``find`` with what is worth a line but no problem.
    """

    name: str
    find: Callable[[], Listing]
    expected: int | None = None
    ids: IdTable | None = None
    required: bool = True
    notes: list[str] = field(default_factory=list)


def guess_layout(root: Path) -> str:
    """The layout of a folder, by the names of its sub-folders.

    Raises:
        InputError: none is recognised.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; check the path, or give --layout to read what belongs there"
        )
    signs = {
        "cityscapes": ("leftImg8bit", "gtFine"),
        "ade20k": ("ADEChallengeData2016", "images/training", "annotations/training"),
        "voc": ("VOCdevkit", "VOC2012", "JPEGImages"),
        "coco": (*(f"annotations/instances_{s}2017.json" for s in coco.COUNTS), "train2017"),
    }
    for layout, names in signs.items():
        if any((root / name).exists() for name in names):
            return layout
    if (root / "images").is_dir() or any(root.glob("*/images")):
        return "camvid" if "camvid" in root.resolve().name.lower() else "folder"
    raise InputError(
        f"{root}: no known layout in it; give --layout ({', '.join(LAYOUTS)}) to read what "
        "belongs there"
    )


def splits_of(
    layout: str, root: Path, *, sbd: Path | None = None, num_classes: int | None = None
) -> list[Split]:
    """The splits of a layout, in the order of the summary."""
    if layout == "cityscapes":
        return _cityscapes(root)
    if layout == "ade20k":
        return [
            Split(name, partial(ade20k.list_split, root, name), count, ade20k.ADE20K_ID_TABLE)
            for name, count in ade20k.COUNTS.items()
        ]
    if layout == "voc":
        return [
            Split(
                name,
                partial(voc.list_split, root, name, sbd),
                count,
                voc.VOC_ID_TABLE,
                required=name != "train_aug" or sbd is not None,
            )
            for name, count in voc.COUNTS.items()
        ]
    if layout == "coco":
        return [_coco(root, name, count) for name, count in coco.COUNTS.items()]
    if layout == "camvid":
        ids = _plain_ids("CamVid", len(camvid.CLASSES))
        counts = {"train": 367, "val": 101, "test": 233}
        return [
            Split(name, partial(_folder, root, root / name, None, layout), count, ids)
            for name, count in counts.items()
        ]
    if layout == "folder":
        ids_of_folder = None if num_classes is None else _plain_ids("these classes", num_classes)
        return [
            Split(name, partial(_folder, root, base, file, layout), ids=ids_of_folder)
            for name, base, file in _folder_splits(root)
        ]
    raise InputError(f"layout {layout!r}: give one of {', '.join(LAYOUTS)}")


def _cityscapes(root: Path) -> list[Split]:
    table, counts = cityscapes.LABEL_ID_TABLE, cityscapes.COUNTS
    splits = [
        Split(name, partial(cityscapes.list_split, root, name), counts[name], table, name != "test")
        for name in ("train", "val", "test")
    ]
    coarse = partial(cityscapes.list_split, labels="coarse")
    return splits + [
        Split(f"{name} (coarse)", partial(coarse, root, name), counts[name], table, required=False)
        for name in ("train", "val", "train_extra")
    ]


def _coco(root: Path, name: str, count: int) -> Split:
    notes: list[str] = []
    return Split(f"{name}2017", partial(_coco_listing, root, name, notes), count, notes=notes)


def _coco_listing(root: Path, name: str, notes: list[str]) -> Listing:
    images, file = root / f"{name}2017", root / "annotations" / f"instances_{name}2017.json"
    if not images.is_dir():
        raise missing(root, "coco", images, (f"{name}2017.zip",))
    content, faults = coco.scan_coco(file)
    total = len(faults) + sum(len(image.annotations) for image in content.images)
    # The published file has annotations without area, which the reader leaves out.
    tolerated = coco.few_enough(sum(fault.empty for fault in faults), total)
    problems = []
    for fault in faults:
        if fault.empty and tolerated:
            notes.append(f"left out: {fault.message}")
        else:
            problems.append(Problem("annotation", str(file), fault.message))
    if len(content.categories) != coco.NUM_CATEGORIES:
        text = f"{file}: {len(content.categories)} categories, published are {coco.NUM_CATEGORIES}"
        problems.append(Problem("count", str(file), text))
    there = {path.name for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    pairs = []
    for image in content.images:
        path = images / image.file
        if image.file in there:
            pairs.append(Pair(image.file, path, size=(image.height, image.width)))
        else:
            text = f"{path}: no such image, but the annotations list it"
            problems.append(Problem("no image", str(path), text))
    for alone in sorted(there.difference(image.file for image in content.images)):
        text = f"{images / alone}: the annotations do not list this image"
        problems.append(Problem("no labels", str(images / alone), text))
    return Listing(pairs, problems)


def _folder_splits(root: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, folder of images/ and masks/, and list file of each split."""
    if (root / "images").is_dir():
        lists = sorted(root.glob("*.txt"))
        return [(file.stem, root, file) for file in lists] or [("all", root, None)]
    found = sorted(path.parent for path in root.glob("*/images"))
    return [(base.name, base, None) for base in found] or [("train", root / "train", None)]


def _folder(root: Path, base: Path, list_file: Path | None, layout: str) -> Listing:
    for part in ("images", "masks"):
        if not (base / part).is_dir():
            if layout == "camvid":
                raise missing(root, layout, base / part, ("folder CamVid",))
            raise MissingData(f"{base}: no folder {part}/ in it; images/ and masks/ are needed")
    images = _files(base / "images", IMAGE_SUFFIXES)
    masks = _files(base / "masks", MASK_SUFFIXES)
    if list_file is not None:
        names = set(_listed(list_file, images, base / "images"))
        images = {name: path for name, path in images.items() if name in names}
        masks = {name: path for name, path in masks.items() if name in names}
    return pair_up(images, masks)


def _plain_ids(title: str, num_classes: int) -> IdTable:
    return IdTable(title, {IGNORE: IGNORE, **{value: value for value in range(num_classes)}})
