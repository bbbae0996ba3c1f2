"""The zip file that the Cityscapes evaluation server accepts, from a folder of predictions.

The server finds the prediction of an image by the beginning of its name,
``<city>_<sequence>_<frame>``, and reads 8-bit PNG files of 2048 x 1024 pixels with label ids (7 for
road) instead of the train ids (0 for road) that networks predict.

Source: the submission page of the data set and its published evaluation scripts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fsanet.data.datasets.cityscapes import CLASSES, LABEL_IDS
from fsanet.errors import InputError
from fsanet.files import write_whole

__all__ = ["check_submission", "remove_predictions", "write_submission"]

_NAME = re.compile(r"(?P<name>[A-Za-z-]+_\d{6}_\d{6})(_leftImg8bit)?")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same predictions make the same file


def write_submission(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> list[str]:
    """Write the zip file to submit from the masks in a finished output folder.

    Args:
        folder: written by `fsanet.predict.folder.predict_folder`, of 19 classes.
        file: the zip file; it is written completely or not at all.

    Returns:
        Names of predictions that the server will refuse because they are not 2048 x 1024 pixels.

    Raises:
        InputError: the folder is unfinished or lacks an image, an image is not named as in
            Cityscapes, or the file is not writable.
    """
    folder, file = Path(folder), Path(file)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if summary.get("failed"):
        first = summary["failed"][0]["error"]
        raise InputError(
            f"{first} ({len(summary['failed'])} unreadable, so no zip file is written; the same "
            "command with --resume tries these again)"
        )
    masks = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "mask" in record.get("files", {}):
            masks[Path(record["image"])] = path.parent / record["files"]["mask"]
    if len(masks) != summary["images"]:
        raise InputError(
            f"{folder}: holds masks of {len(masks)} images, {summary['images']} of them from its "
            "last run; give the output folder of a finished run that holds nothing else"
        )
    names = _submission_names(masks)
    table = np.array(LABEL_IDS, dtype=np.uint8)
    wrong_size = []

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:  # stored, because PNG files are compressed
            for image, mask in masks.items():
                with Image.open(mask) as picture:
                    ids = Image.fromarray(table[np.asarray(picture)])  # (H, W)
                if ids.size != (2048, 1024):
                    wrong_size.append(names[image])
                content = BytesIO()
                ids.save(content, format="PNG")
                archive.writestr(zipfile.ZipInfo(names[image], _EPOCH), content.getvalue())

    write_whole(file, write)
    return wrong_size


def check_submission(file: Path, classes: Sequence[object], images: Iterable[Path] = ()) -> None:
    """Raise `InputError` if no zip file to submit can come out of a prediction.

    Args:
        file: the zip file to be written.
        classes: of the network; the 19 train ids in order, or without names.
        images: to be predicted.
    """
    if file.suffix.lower() != ".zip":
        raise InputError(f"{file}: the server takes a .zip file; give a name that ends in .zip")
    expected = CLASSES
    if len(classes) != len(expected):
        raise InputError(
            f"the model has {len(classes)} classes; the Cityscapes server takes the "
            f"{len(expected)} train ids"
        )
    named = not all(str(name).isdigit() for name in classes)
    for index, (name, theirs) in enumerate(zip(classes, expected, strict=True)):
        if named and str(name).lower().replace("_", " ") != theirs:
            raise InputError(
                f"class {index} of the model is {name!r} where Cityscapes has {theirs!r}; "
                "train it on the 19 classes in the order of their train ids"
            )
    _submission_names(images)


def remove_predictions(folder: Path) -> None:
    """Remove what `fsanet.predict.folder.predict_folder` wrote, and folders left empty."""
    for path in [*folder.rglob("*.json")]:
        for name in json.loads(path.read_text(encoding="utf-8")).get("files", {}).values():
            (path.parent / name).unlink(missing_ok=True)
        path.unlink()
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for empty in [*sorted(folders, reverse=True), folder]:  # inner ones first
        with contextlib.suppress(OSError):
            empty.rmdir()


def _submission_names(images: Iterable[Path]) -> dict[Path, str]:
    """The name of each image's prediction in the zip file.

    >>> _submission_names([Path("test/berlin/berlin_000000_000019_leftImg8bit.png")]).popitem()[1]
    'berlin_000000_000019_gtFine_labelIds.png'
    """
    names: dict[Path, str] = {}
    taken: dict[str, Path] = {}
    for image in images:
        found = _NAME.fullmatch(image.stem)
        if found is None:
            raise InputError(
                f"{image}: not named like an image of Cityscapes "
                "(<city>_<sequence>_<frame>_leftImg8bit.png); give leftImg8bit/test"
            )
        names[image] = name = f"{found['name']}_gtFine_labelIds.png"
        if taken.setdefault(name, image) is not image:
            raise InputError(f"{image}: the same image as {taken[name]}; give one of them")
    return names
