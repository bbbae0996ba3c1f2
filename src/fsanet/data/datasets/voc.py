"""PASCAL VOC 2012, and its training set augmented by the Semantic Boundaries Dataset (SBD).

The 10582 images of ``train_aug`` are the union of SBD's train and val (11355) and VOC's train
(1464), without VOC's val (1449). An image of VOC's train keeps VOC's own, finer labels.

torchvision's `VOCSegmentation` and `SBDataset` each read one half; here it is their union, also
with SBD's labels as PNG files, and what is missing from it.

Sources: Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010, and the VOC
2012 development kit; Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsanet.data.datasets.base import Layout, Listing, Pair, PairedImages, Problem, Split, files_in
from fsanet.data.masks import IGNORE, Colour, IdTable, read_mask
from fsanet.errors import InputError
from fsanet.inputs import file_errors, open_file, read_text

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


def _colour(label: int) -> Colour:
    """The development kit's colour map: the bits of an id, dealt to r, g, b from the top down.

    >>> [_colour(i) for i in (0, 1, 15, 20)]
    [(0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128)]
    """
    r = g = b = 0
    for shift in range(7, -1, -1):
        r |= (label & 1) << shift
        g |= (label >> 1 & 1) << shift
        b |= (label >> 2 & 1) << shift
        label >>= 3
    return r, g, b


PALETTE = tuple(_colour(i) for i in range(21))

#: 0 is the background, 1..20 are objects, 255 their outlines.
ID_TABLE = IdTable("VOC", {IGNORE: IGNORE, **{value: value for value in range(21)}})

_COUNTS = {"train": 1464, "val": 1449, "train_aug": 10582}

_VOC_SITE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_SBD_SITE = "http://home.bharathh.info/pubs/codes/SBD/download.html"
_VOC_ARCHIVE, _SBD_ARCHIVE = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
_MAT_BYTES = 1_000_000  # SBD's are of some ten thousand
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


def require_scipy() -> None:
    """Raise `InputError` if SciPy, which reads ``.mat`` files, is not installed."""
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise InputError(
            "SBD's .mat files need SciPy: pip install scipy, or put the folder of PNG "
            "files SegmentationClassAug into VOC2012"
        ) from error


def read_labels(path: str | Path) -> Tensor:
    """Read a label file: a PNG file, or SBD's ``.mat`` (its field ``GTcls.Segmentation``).

    Returns:
        uint8 (H, W).

    Raises:
        InputError: SciPy is missing, or the file is missing, damaged or of another kind.
    """
    path = Path(path)
    if path.suffix != ".mat":
        return read_mask(path)
    require_scipy()
    from scipy.io import loadmat

    try:
        with open_file(path, "label", _MAT_BYTES) as stream:
            content = loadmat(stream, variable_names=["GTcls"])
        values = np.asarray(content["GTcls"]["Segmentation"][0, 0])
        if values.ndim != 2 or not values.size or values.dtype.kind not in "ui":
            raise ValueError("not a map of class ids")
        if values.min() < 0 or values.max() > 255:
            raise ValueError("ids beyond 8 bits")
    except InputError:
        raise
    except Exception as error:  # SciPy's reader raises whatever its parsing runs into
        raise InputError(
            f"{path}: labels cannot be read (damaged, or not from SBD's cls/); unpack "
            f"{_SBD_ARCHIVE} again"
        ) from error
    return torch.from_numpy(values.astype(np.uint8))


class VocAug(PairedImages):
    """VOC 2012 with 21 classes, 0 being the background, and SBD.

    Images differ in size, the longer side has 500 pixels. SBD's labels are taken from
    ``VOC2012/SegmentationClassAug/*.png`` if that folder exists, else from SBD's ``cls/*.mat``
    (SciPy, extra ``voc``).

    Args:
        root: the folder of ``VOCdevkit``, or of ``VOC2012``, or ``VOC2012`` itself.
        split: ``"train"`` (1464 images), ``"val"`` (1449) or ``"train_aug"`` (10582).
        sbd: SBD's folder, the one with ``cls``; by default looked for in ``root``.

    Raises:
        InputError: see `PairedImages`; for a missing split the message says what to download.
    """

    classes, palette, ids = CLASSES, PALETTE, ID_TABLE
    read_labels = staticmethod(read_labels)

    def __init__(
        self,
        root: str | Path,
        split: str = "train_aug",
        *,
        sbd: str | Path | None = None,
    ) -> None:
        if split not in _COUNTS:
            raise InputError(f"split={split!r}: VOC has {', '.join(_COUNTS)}")
        listing = list_split(Path(root), split, sbd)
        for problem in listing.problems:
            if problem.kind in ("no image", "leak"):
                raise InputError(problem.message)
        super().__init__(listing)


@file_errors()
def list_split(root: Path, split: str, sbd: str | Path | None = None) -> Listing:
    """List the pairs of train, val or train_aug.

    Raises:
        MissingData: VOC, or for train_aug SBD, is not there.
        InputError: a list of names cannot be read.
    """
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    voc = next((place for place in places if (place / "JPEGImages").is_dir()), places[0])
    own = voc / "SegmentationClass"
    lists = {name: voc / f"ImageSets/Segmentation/{name}.txt" for name in ("train", "val")}
    for part in (voc / "JPEGImages", own, *lists.values()):
        if not part.exists():
            raise LAYOUT.missing(root, part, (_VOC_ARCHIVE,), _VOC_SITE)
    if split != "train_aug":
        names = _names(lists[split])
        return _pairs(voc, names, {name: own / f"{name}.png" for name in names})
    train, val = _names(lists["train"]), set(_names(lists["val"]))
    labels, leak = _augmented(root, voc, None if sbd is None else Path(sbd), val)
    labels |= {name: own / f"{name}.png" for name in train}
    listing = _pairs(voc, sorted(set(labels) - val), labels)
    mats = any(path.suffix == ".mat" for path in labels.values())
    return listing._replace(
        problems=[*leak, *listing.problems], require=require_scipy if mats else None
    )


def _augmented(
    root: Path, voc: Path, sbd: Path | None, val: set[str]
) -> tuple[dict[str, Path], list[Problem]]:
    """SBD's label files by name, and the problem of a list that leaks val."""
    pngs = voc / "SegmentationClassAug"
    if sbd is None and pngs.is_dir():
        leak = []
        file = next((f for f in (voc / "ImageSets" / name for name in _LISTS) if f.is_file()), None)
        names = _names(file) if file else list(files_in(pngs, ".png"))
        if file and (leaked := sorted(val.intersection(names))):
            text = f"{file}: {len(leaked)} images of VOC's val, the first {leaked[:1]}"
            leak = [Problem("leak", str(file), f"{text}; remove them from the list")]
        return {name: pngs / f"{name}.png" for name in names}, leak
    folders = [root / name for name in _SBD_FOLDERS] if sbd is None else [sbd]
    for folder in folders:
        if (folder / "cls").is_dir():
            names = [*_names(folder / "train.txt"), *_names(folder / "val.txt")]
            return {name: folder / "cls" / f"{name}.mat" for name in names}, []
    if sbd is not None:
        raise InputError(f"{sbd}: no folder cls; give SBD's folder benchmark_RELEASE/dataset")
    raise LAYOUT.missing(root, folders[0] / "cls", (_SBD_ARCHIVE,), _SBD_SITE)


def _pairs(voc: Path, names: Sequence[str], labels: Mapping[str, Path]) -> Listing:
    """Pairs of the names whose files exist; each folder is listed once."""
    images = voc / "JPEGImages"
    existing = {p: set(os.listdir(p)) for p in {images, *(f.parent for f in labels.values())}}
    pairs, problems = [], []
    for name in names:
        image, mask = images / f"{name}.jpg", labels[name]
        if image.name not in existing[images]:
            text = f"{image}: no such image, but the lists name it; unpack {_VOC_ARCHIVE} again"
            problems.append(Problem("no image", str(image), text))
        elif mask.name not in existing[mask.parent]:
            text = f"{image}: image has no labels {mask}"
            problems.append(Problem("no labels", str(image), text))
        else:
            pairs.append(Pair(name, image, mask))
    return Listing(pairs, problems)


def _names(file: Path) -> list[str]:
    """First word of each line, without folders and extension, which fits all lists in use."""
    lines = read_text(file, "list").splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _splits(root: Path, *, sbd: str | Path | None = None, **_: Any) -> list[Split]:
    return [
        Split(
            name,
            partial(list_split, root, name, sbd),
            count,
            ID_TABLE,
            read_labels,
            required=name != "train_aug" or sbd is not None,
        )
        for name, count in _COUNTS.items()
    ]


LAYOUT = Layout(
    name="voc",
    title="PASCAL VOC 2012 with SBD",
    site=f"{_VOC_SITE} and, for SBD, {_SBD_SITE}",
    archives={
        _VOC_ARCHIVE: "VOC 2012; 2 GB",
        _SBD_ARCHIVE: "SBD, 11355 more label files; 1.4 GB",
    },
    tree="""\
    DIR/VOCdevkit/VOC2012/JPEGImages/*.jpg
    DIR/VOCdevkit/VOC2012/SegmentationClass/*.png               train 1464, val 1449
    DIR/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
    DIR/benchmark_RELEASE/dataset/cls/*.mat                     SBD, with train.txt, val.txt
    """,
    notes="Together they make the 10582 images of train_aug: SBD's train and val and VOC's train, "
    "without VOC's val. Instead of SBD itself, its labels as PNG files may be in "
    "VOC2012/SegmentationClassAug (no SciPy needed then).",
    signs=("VOCdevkit", "VOC2012", "JPEGImages"),
    splits=_splits,
)
