"""Predictions as the Cityscapes evaluation server takes them: one zip of label-id PNG files.

The server finds the prediction of an image by the beginning of the file's name,
``<city>_<sequence>_<frame>``, and reads 8-bit PNG files of 2048 x 1024 pixels that hold label ids
(7 for road), not the train ids (0 for road) that networks give.

Source: the submission page of the data set and its published evaluation scripts.
"""

from __future__ import annotations

import contextlib
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

from fsanet.convert import load_model
from fsanet.data.datasets.cityscapes import CLASSES, LABEL_IDS
from fsanet.data.images import list_images
from fsanet.errors import InputError
from fsanet.files import model_summary, write_json, write_whole
from fsanet.predict.bulk import predict_all
from fsanet.predict.bulk_state import Item
from fsanet.predict.folder import SegmentsFiles, predictor_settings
from fsanet.predict.predictor import Predictor
from fsanet.predict.processes import start_processes
from fsanet.predict.result import Segmentation

__all__ = ["TEST_IMAGES", "CityscapesExport", "export_cityscapes"]

TEST_IMAGES = 1525
_SIZE = (1024, 2048)  # height, width
_NAME = re.compile(r"(?P<name>[A-Za-z-]+_\d{6}_\d{6})(_leftImg8bit)?")
_MASK = "_labelIds.png"
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
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> CityscapesExport:
    """Segment images and write the zip file to submit; it is written whole or not at all.

    Until then the predictions are in a folder beside it, ``FILE.zip.parts``, from which ``resume``
    goes on.

    Args:
        model: network of the 19 classes, or the folder one was saved in.
        paths: images ``<city>_<sequence>_<frame>_leftImg8bit.png``, and folders of them, such as
            ``leftImg8bit/test``.
        file: zip to write.
        window, stride, scales, flip, batch_size, device, dtype, offload: see
            `fsanet.Predictor`.
        recursive: search sub-folders too.
        resume: keep what an earlier run has finished, with the same model and settings.
        accelerator, devices, num_nodes, strategy: processes that share the work; see
            `fsanet.predict.processes.start_processes`.
        progress: how far all processes are: a bar on a terminal, else a line each half minute.

    Returns:
        what was written: each prediction as ``<city>_<sequence>_<frame>_gtFine_labelIds.png``.

    Raises:
        InputError: a network of other classes, a file name that is not of Cityscapes, an image
            that is given twice or cannot be read, a file that cannot be written, results of another
            model or other settings with ``resume``.
    """
    file = Path(file)
    if file.suffix.lower() != ".zip":
        raise InputError(f"{file}: the server takes a .zip file; name it so")
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    processes = start_processes(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        device=device,
    )

    def make_writer() -> _LabelIdWriter:
        network = load_model(model, task="semantic")
        check_cityscapes_classes(tuple(network.classes))  # type: ignore[arg-type]
        if processes.first:  # names are checked before the work
            submission_names(list_images(paths, recursive=recursive))
        predictor = Predictor(
            network,
            window=window,
            stride=stride,
            scales=scales,
            flip=flip,
            batch_size=batch_size,
            device=processes.device,
            dtype=dtype,
            offload=offload,
        )
        return _LabelIdWriter(predictor)

    parts = file.with_name(f"{file.name}.parts")
    summary = predict_all(
        make_writer,
        paths,
        parts,
        processes=processes,
        recursive=recursive,
        resume=resume,
        progress=progress,
    )

    def finish() -> CityscapesExport:
        failed = summary["failed"]
        if failed:
            raise InputError(
                f"{failed[0]['error']} ({len(failed)} not read, so no zip is written; "
                "the same command with --resume tries these again)"
            )
        done = summary["predictions"]
        names = submission_names([Path(entry["image"]) for entry in done])
        masks = {
            name: parts / entry["mask"] for entry, name in zip(done, names.values(), strict=True)
        }
        write_whole(file, lambda stream: _write_zip(stream, masks))
        _remove(parts, [*masks.values(), *(parts / entry["record"] for entry in done)])
        other_sizes = sum(tuple(entry["size"]) != _SIZE for entry in done)
        return CityscapesExport(file=file, images=len(done), other_sizes=other_sizes)

    return processes.by_first(finish)


class _LabelIdWriter(SegmentsFiles):
    """PNG files of label ids; see `fsanet.predict.bulk_state.Writer`."""

    reserved: tuple[str, ...] = ()

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.batch_size = predictor.batch_size
        self.settings = {"values": "label ids"} | predictor_settings(predictor)
        self.model = model_summary(predictor.model)
        self._table = np.array(LABEL_IDS, dtype=np.uint8)

    def save(
        self, result: Segmentation, folder: Path, stem: str, extra: dict[str, Any]
    ) -> list[int]:
        ids = Image.fromarray(self._table[result.mask.numpy()])  # (H, W)
        mask = write_whole(folder / f"{stem}{_MASK}", lambda stream: ids.save(stream, format="PNG"))
        size = list(result.mask.shape)
        about = {"image": str(result.source), "size": size, **extra, "files": {"mask": mask.name}}
        write_json(folder / f"{stem}.json", about)
        return size

    def digest(self, record: dict[str, Any]) -> list[int]:
        """Height and width."""
        height, width = record["size"]
        return [height, width]

    def summary(self, out: Path, digests: Sequence[tuple[Item, list[int]]]) -> dict[str, Any]:
        predictions = [
            {
                "image": str(item.file),
                "mask": f"{item.stem}{_MASK}",
                "record": f"{item.stem}.json",
                "size": size,
            }
            for item, size in digests
        ]
        return {"predictions": predictions}


def _write_zip(stream: BinaryIO, masks: dict[str, Path]) -> None:
    # Stored as they are: PNG files are compressed already.
    with zipfile.ZipFile(stream, "w") as archive:
        for name, mask in masks.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), mask.read_bytes())


def _remove(parts: Path, files: Sequence[Path]) -> None:
    """Removes what was made on the way, and the folders, unless others have put files there."""
    for file in [*files, parts / "summary.json"]:
        file.unlink(missing_ok=True)
    folders = {folder for file in files for folder in file.parents if parts in folder.parents}
    for folder in [*sorted(folders, key=lambda folder: len(folder.parts), reverse=True), parts]:
        with contextlib.suppress(OSError):
            folder.rmdir()


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
    wanted = CLASSES
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
