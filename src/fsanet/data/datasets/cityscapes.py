"""Cityscapes in its published layout, fine and coarse, with the 19 classes that are evaluated.

We list the files ourselves rather than with torchvision's `Cityscapes`, which unpacks archives
without being asked, wants labels of the test split, keeps the file system's order, and notices a
missing label file only when it is read. A test compares the two.

Sources: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016;
the label definitions in cityscapesScripts.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from functools import partial, reduce
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from fsanet.data.datasets.base import Layout, Listing, Pair, PairedImages, Split, files_in, pair_up
from fsanet.data.masks import IGNORE, Colour, IdTable, read_mask
from fsanet.errors import InputError
from fsanet.files import write_whole
from fsanet.inputs import file_errors, read_json

# Train id is the position; name, label id in the files, colour.
_CLASSES: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _CLASSES)
LABEL_IDS = tuple(value for _, value, _ in _CLASSES)
PALETTE = tuple(colour for _, _, colour in _CLASSES)

#: The 34 label ids to train ids; those that are not evaluated become 255.
ID_TABLE = IdTable(
    "Cityscapes",
    {**dict.fromkeys(range(34), IGNORE), **{value: i for i, value in enumerate(LABEL_IDS)}},
)

_COUNTS = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "fine": {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")},
    "coarse": {"train": ("train",), "val": ("val",), "train_extra": ("train_extra",)},
}


class Cityscapes(PairedImages):
    """Cityscapes: ``root/leftImg8bit`` with ``root/gtFine`` or ``root/gtCoarse``.

    Images are 2048 wide and 1024 high. Label ids 0..33 are mapped to the 19 train ids, all others
    to 255. The labels of ``"test"`` are not published: its masks are 255 throughout.

    Args:
        root: folder with ``leftImg8bit``.
        split: ``"train"`` (2975 images), ``"val"`` (500), ``"test"`` (1525) or ``"trainval"``; with
            coarse labels ``"train"``, ``"val"`` or ``"train_extra"`` (19998).
        labels: ``"fine"`` or ``"coarse"``.

    Raises:
        InputError: see `PairedImages`; for a missing split the message says what to download.
    """

    classes, palette, ids = CLASSES, PALETTE, ID_TABLE

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        labels: Literal["fine", "coarse"] = "fine",
    ) -> None:
        if labels not in _PARTS:
            raise InputError(f"labels={labels!r}: Cityscapes has fine and coarse ones")
        if split not in _PARTS[labels]:
            raise InputError(
                f"split={split!r}: Cityscapes with {labels} labels has {', '.join(_PARTS[labels])}"
            )
        listings = (list_split(Path(root), part, labels) for part in _PARTS[labels][split])
        super().__init__(reduce(Listing.and_then, listings))


@file_errors()
def list_split(root: Path, split: str, labels: str = "fine") -> Listing:
    """List the pairs of train, val, test or train_extra, named like ``aachen_000000_000019``.

    Raises:
        MissingData: its images or labels are not there.
    """
    kind = "gtFine" if labels == "fine" else "gtCoarse"
    extra = split == "train_extra"
    image_archive = f"leftImg8bit_{'trainextra' if extra else 'trainvaltest'}.zip"
    label_archive = "gtFine_trainvaltest.zip" if labels == "fine" else "gtCoarse.zip"
    folder, archives = root / "leftImg8bit" / split, (image_archive, label_archive)
    images = _by_name(folder, "_leftImg8bit.png")
    if not images:
        raise LAYOUT.missing(root, folder, archives)
    if split == "test":
        return Listing([Pair(name, path) for name, path in images.items()])
    folder = root / kind / split
    masks = _by_name(folder, f"_{kind}_labelIds.png")
    if not masks:
        raise LAYOUT.missing(root, folder, archives[1:])
    return pair_up(images, masks, folder)


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Files of all cities by name, without the ending; names start with the city."""
    cities = folder.iterdir() if folder.is_dir() else ()
    found = [item for city in cities for item in files_in(city, ending).items()]
    return dict(sorted(found))


def _splits(root: Path, **_: Any) -> list[Split]:
    fine = [
        Split(
            name,
            partial(list_split, root, name),
            _COUNTS[name],
            ID_TABLE,
            required=name != "test",
        )
        for name in ("train", "val", "test")
    ]
    coarse = [
        Split(
            f"{name} (coarse)",
            partial(list_split, root, name, "coarse"),
            _COUNTS[name],
            ID_TABLE,
            required=False,
        )
        for name in ("train", "val", "train_extra")
    ]
    return fine + coarse


def check_submission(file: Path, classes: Sequence[object], images: Iterable[Path]) -> None:
    """Raise `InputError` if predictions cannot be submitted to the evaluation server.

    Args:
        file: the zip file to be written.
        classes: of the network; the 19 train ids in order, or unnamed.
        images: to be predicted.
    """
    if file.suffix.lower() != ".zip":
        raise InputError(f"{file}: the server takes a .zip file; give a name that ends in .zip")
    if len(classes) != len(CLASSES):
        raise InputError(
            f"the model has {len(classes)} classes; the Cityscapes server takes the "
            f"{len(CLASSES)} train ids"
        )
    named = not all(str(name).isdigit() for name in classes)
    for index, (name, expected) in enumerate(zip(classes, CLASSES, strict=True)):
        if named and str(name).lower().replace("_", " ") != expected:
            raise InputError(
                f"class {index} of the model is {name!r} where Cityscapes has {expected!r}; "
                "train it on the 19 classes in the order of their train ids"
            )
    _submission_names(images)


def write_submission(folder: Path, file: Path) -> list[str]:
    """Write the zip file for the evaluation server from a folder of predicted masks.

    The server finds the prediction of an image by the beginning of its name,
    ``<city>_<sequence>_<frame>``, and reads PNG files of label ids instead of train ids.

    Args:
        folder: written completely by `fsanet.predict.folder.predict_folder`.
        file: the zip file; it is written completely or not at all.

    Returns:
        Names of the predictions that are not 2048 x 1024 pixels, which the server refuses.

    Raises:
        InputError: an image was unreadable or is not named as in Cityscapes, the folder holds
            other predictions too, or the file is not writable.
    """
    summary = read_json(folder / "summary.json", "result")
    if summary["failed"]:
        raise InputError(
            f"{summary['failed'][0]['error']} ({len(summary['failed'])} not read, so no zip file "
            "is written; the same command with --resume tries these again)"
        )
    masks = {}
    for path in sorted(folder.rglob("*.json")):
        record = read_json(path, "result")
        if "mask" in record.get("files", ()):
            masks[Path(record["image"])] = path.parent / record["files"]["mask"]
    if len(masks) != summary["images"]:
        raise InputError(
            f"{folder}: holds masks of {len(masks)} images, {summary['images']} of them from the "
            "last run; give a folder with the predictions of one run"
        )
    names = _submission_names(masks)
    label_ids = np.array(LABEL_IDS, dtype=np.uint8)
    refused = []

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:  # stored, because PNG files are compressed
            for image, mask in masks.items():
                ids = Image.fromarray(label_ids[read_mask(mask).numpy()])  # (H, W)
                if ids.size != (2048, 1024):
                    refused.append(names[image])
                content = BytesIO()
                ids.save(content, format="PNG")
                entry = zipfile.ZipInfo(names[image])  # without a date: equal masks, equal files
                archive.writestr(entry, content.getvalue())

    write_whole(file, write)
    return refused


def _submission_names(images: Iterable[Path]) -> dict[Path, str]:
    """The name of each image's prediction in the zip file.

    >>> _submission_names([Path("test/berlin/berlin_000000_000019_leftImg8bit.png")]).popitem()[1]
    'berlin_000000_000019_gtFine_labelIds.png'
    """
    names: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for image in images:
        found = re.fullmatch(r"([A-Za-z-]+_\d{6}_\d{6})(_leftImg8bit)?", image.stem)
        if found is None:
            raise InputError(
                f"{image}: not named like an image of Cityscapes "
                "(<city>_<sequence>_<frame>_leftImg8bit.png); give leftImg8bit/test"
            )
        names[image] = name = f"{found[1]}_gtFine_labelIds.png"
        if taken.setdefault(name, image) is not image:
            raise InputError(f"{image}: the same image as {taken[name]}; give one of them")
    return names


LAYOUT = Layout(
    name="cityscapes",
    title="Cityscapes",
    site="https://www.cityscapes-dataset.com (an account is needed)",
    archives={
        "leftImg8bit_trainvaltest.zip": "images of train, val, test; 11 GB",
        "gtFine_trainvaltest.zip": "fine labels; 241 MB",
        "leftImg8bit_trainextra.zip": "only for coarse training: more images; 44 GB",
        "gtCoarse.zip": "only for coarse training: coarse labels; 1.3 GB",
    },
    tree="""\
    DIR/leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png     2975, 500, 1525 images
    DIR/gtFine/{train,val}/CITY/*_gtFine_labelIds.png           ids 0..33
    DIR/leftImg8bit/train_extra/CITY/*_leftImg8bit.png          19998 images (coarse only)
    DIR/gtCoarse/{train,val,train_extra}/CITY/*_gtCoarse_labelIds.png
    """,
    notes="The 34 label ids are mapped to the 19 train ids while reading: no conversion is needed.",
    signs=("leftImg8bit", "gtFine"),
    splits=_splits,
)
