"""Predictions as the Cityscapes evaluation server takes them: one zip of label-id PNG files.

The server finds the prediction of an image by the beginning of the file's name,
``<city>_<sequence>_<frame>``, and reads 8-bit PNG files of 2048 x 1024 pixels that hold label ids
(7 for road), not the train ids (0 for road) that networks give.

Source: the submission page of the data set and its published evaluation scripts.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import nn

from fsanet.bench.progress import make_progress
from fsanet.data.cityscapes import LABEL_IDS
from fsanet.data.class_names import CITYSCAPES
from fsanet.data.images import list_images
from fsanet.errors import InputError
from fsanet.files import write_whole
from fsanet.predict import Predictor
from fsanet.predict_folder import load_model

__all__ = ["TEST_IMAGES", "CityscapesExport", "export_cityscapes"]

TEST_IMAGES = 1525
_SIZE = (1024, 2048)  # height, width
_NAME = re.compile(r"(?P<name>[A-Za-z-]+_\d{6}_\d{6})(_leftImg8bit)?")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same predictions make the same file


@dataclass(frozen=True)
class CityscapesExport:
    """What was written.

    Attributes:
        file: the zip.
        images: how many predictions are in it.
        other_sizes: how many of them are not 2048 x 1024 pixels, as the server wants them.
    """

    file: Path
    images: int
    other_sizes: int


def export_cityscapes(
    model: nn.Module | str | os.PathLike[str],
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    file: str | os.PathLike[str],
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    offload: bool = False,
    recursive: bool = True,
    progress: bool = True,
) -> CityscapesExport:
    """Segment images and write the zip file to submit; it is written whole or not at all.

    Args:
        model: network of the 19 classes, or the folder one was saved in.
        paths: images ``<city>_<sequence>_<frame>_leftImg8bit.png``, and folders of them, such as
            ``leftImg8bit/test``.
        file: zip to write.
        window, stride, scales, flip, batch_size, device, dtype, offload: see
            `fsanet.Predictor`.
        recursive: search sub-folders too.
        progress: draw a bar with rate and time left on a terminal.

    Returns:
        what was written: each prediction as ``<city>_<sequence>_<frame>_gtFine_labelIds.png``.

    Raises:
        InputError: a network of other classes, a file name that is not of Cityscapes, an image
            that is given twice or cannot be read, a file that cannot be written.
    """
    network = load_model(model)
    check_cityscapes_classes(tuple(network.classes))  # type: ignore[arg-type]
    file = Path(file)
    if file.suffix.lower() != ".zip":
        raise InputError(f"{file}: the server takes a .zip file; name it so")
    images = list_images(paths, recursive=recursive)
    names = submission_names(images)
    predictor = Predictor(
        network,
        window=window,
        stride=stride,
        scales=scales,
        flip=flip,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    table = np.array(LABEL_IDS, dtype=np.uint8)
    other_sizes = 0

    def write(stream: BinaryIO) -> None:
        nonlocal other_sizes
        bar = make_progress()
        bar.disable = bar.disable or not progress
        # Stored as they are: PNG files are compressed already.
        with zipfile.ZipFile(stream, "w") as archive, bar:
            task = bar.add_task("predict", total=len(images), current="")
            for result in predictor.predict_files(images):
                ids = table[result.mask.numpy()]  # (H, W)
                other_sizes += ids.shape != _SIZE
                buffer = io.BytesIO()
                Image.fromarray(ids).save(buffer, format="PNG")
                name = names[Path(str(result.source))]
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), buffer.getvalue())
                bar.update(task, advance=1)

    write_whole(file, write)
    return CityscapesExport(file=file, images=len(images), other_sizes=other_sizes)


def submission_names(images: Sequence[Path]) -> dict[Path, str]:
    """Name in the zip of each image.

    Raises:
        InputError: a name that is not of Cityscapes, two images of one name.

    >>> submission_names([Path("test/berlin/berlin_000000_000019_leftImg8bit.png")]).popitem()[1]
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
        name = f"{found['name']}_gtFine_labelIds.png"
        if name in taken:
            raise InputError(f"{image}: the same image as {taken[name]}; give one of them")
        names[image], taken[name] = name, image
    return names


def check_cityscapes_classes(classes: Sequence[Any]) -> None:
    """Raises `InputError` unless the classes are the 19 ones in their order, or nameless."""
    wanted = CITYSCAPES.classes
    if len(classes) != len(wanted):
        raise InputError(
            f"the model has {len(classes)} classes; the Cityscapes server takes the {len(wanted)} "
            "of its train ids"
        )
    if all(str(name).isdigit() for name in classes):
        return
    for index, (mine, theirs) in enumerate(zip(classes, wanted, strict=True)):
        if str(mine).lower().replace("_", " ") != theirs:
            raise InputError(
                f"class {index} of the model is {mine!r} where Cityscapes has {theirs!r}; "
                "train it on the 19 classes in the order of their train ids"
            )
