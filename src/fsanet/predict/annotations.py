"""Predictions as annotations that labelling tools import: COCO, CVAT and Label Studio.

They are made from the files that `fsanet.predict.folder.predict_folder` wrote, so that one process
or many can have predicted, and hold the masks to the bit.
"""

# (H, W) size of an image in pixels

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from fsanet.data.cvat import CvatImage, cvat_document
from fsanet.data.label_studio import encode_brush
from fsanet.data.masks import read_mask
from fsanet.data.shapes import decode_masks, encode_masks, mask_tools
from fsanet.errors import InputError, check_range
from fsanet.files import write_bytes, write_json
from fsanet.inputs import read_json

__all__ = ["AnnotationFormat", "most_uncertain", "write_annotations"]

AnnotationFormat = Literal["coco", "cvat", "labelstudio"]

_LARGEST_JSON = 10**9  # bytes

_Record = tuple[Path, dict[str, Any]]  # the JSON file of an image, and its content


class _Shape(NamedTuple):
    """A mask of an image: its category, bool (H, W), and score, if it has one."""

    category: int
    mask: NDArray[np.bool_]
    score: float | None


class _Image(NamedTuple):
    name: str
    height: int
    width: int
    shapes: list[_Shape]


def write_annotations(
    out: str | Path, format: AnnotationFormat, *, images: Iterable[str | Path] | None = None
) -> Path:
    """Write the predictions in a folder as one annotation file beside them.

    A semantic prediction has one mask for each class but "background", an instance prediction one
    for each instance. Category ids start at 1, because 0 is the background for COCO's readers and
    CVAT: they are the class ids plus one, or those of the instances' data set.

    Args:
        out: folder that `predict_folder` wrote.
        format: "coco": ``annotations.json``, masks as RLE; "cvat": ``annotations.xml``, "CVAT for
            images 1.1"; "labelstudio": ``tasks.json``, brushes as predictions of tasks.
        images: only these image files, by the paths they were predicted by; by default all, those
            of earlier runs into the same folder among them.

    Raises:
        InputError: the folder holds no predictions, or faster-coco-eval is not installed.
    """
    out = Path(out)
    records = _records(out, images)
    if format == "cvat":
        names = _category_names(out)
        document = cvat_document(
            [
                CvatImage(
                    image.name,
                    image.height,
                    image.width,
                    [(names[shape.category], shape.mask) for shape in image.shapes],
                )
                for image in _images(out, records, names)
            ],
            list(names.values()),
        )
        return write_bytes(out / "annotations.xml", document)
    if format == "labelstudio":
        return write_json(out / "tasks.json", _tasks(out, records))
    mask_tools()  # raises if it is missing
    return write_json(out / "annotations.json", _coco(out, records))


def most_uncertain(
    out: str | Path, count: int, *, images: Iterable[str | Path] | None = None
) -> list[tuple[str, float]]:
    """Images with the highest mean entropy in a folder of predictions, and write the list.

    ``uncertain.txt`` has one image a line, the most uncertain first.

    Args:
        out: folder that `predict_folder` wrote with ``entropy``.
        count: number of images.
        images: see `write_annotations`.

    Returns:
        the image files with their mean entropy in nats.

    Raises:
        InputError: the folder holds no predictions with their entropy.
    """
    check_range("uncertain", count, 1, 10**9)
    records = (record for _, record in _records(Path(out), images))
    found = [(one["image"], one["mean_entropy"]) for one in records if "mean_entropy" in one]
    if not found:
        raise InputError(f"{out}: no entropy in it; predict again with --entropy")
    found.sort(key=lambda entry: (-entry[1], entry[0]))
    chosen = found[:count]
    write_bytes(Path(out, "uncertain.txt"), b"".join(os.fsencode(f"{n}\n") for n, _ in chosen))
    return chosen


def _records(out: Path, images: Iterable[str | Path] | None) -> Iterator[_Record]:
    """The JSON files of predicted images, of all or of these, in the order of their paths.

    Of an image that earlier runs predicted together with others, and so under another name, the
    result written last counts. Whatever else lies in the folder is left out.
    """
    chosen = None if images is None else {*map(str, images)}
    latest = dict[str, tuple[int, Path]]()  # by image; files are read twice, to hold one at a time
    for file in sorted(out.rglob("*.json")):
        record = _record(file)
        if record is not None and (chosen is None or record["image"] in chosen):
            found = file.stat().st_mtime_ns, file
            latest[record["image"]] = max(found, latest.get(record["image"], found))
    for _, file in sorted(latest.values(), key=lambda entry: entry[1]):
        record = _record(file)
        if record is not None:
            yield file, record


def _record(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file of a predicted image; None if it is none."""
    record = None
    with contextlib.suppress(InputError):
        record = read_json(file, "result", _LARGEST_JSON)
    if not isinstance(record, dict) or not {"made", "image", "files", "width"} <= record.keys():
        return None  # of an image that could not be read, or no result
    return record if isinstance(record["image"], str) else None


def _category_names(out: Path) -> dict[int, str]:
    """Names by category id, of `summary.json`."""
    summary = read_json(out / "summary.json", "summary", _LARGEST_JSON)
    names = {
        entry["category_id"] if "category_id" in entry else entry["id"] + 1: entry["name"]
        for entry in summary.get("classes", [])
    }
    if "instances" not in summary and names.get(1) == "background":
        del names[1]
    return names


def _images(out: Path, records: Iterable[_Record], names: Mapping[int, str]) -> Iterator[_Image]:
    """The predicted images with their masks, of the categories that have names, one at a time."""
    empty = True
    for file, record in records:
        empty = False
        # The path below the folder of images: results keep its folders.
        name = (file.parent.relative_to(out) / Path(record["image"]).name).as_posix()
        height, width = record["height"], record["width"]
        shapes = []
        if "results" in record:
            for entry in record["results"]:
                mask = decode_masks([entry["segmentation"]], height, width)[0].bool().numpy()
                shapes.append(_Shape(entry["category_id"], mask, entry["score"]))
        else:
            ids = read_mask(file.with_name(record["files"]["mask"])).numpy()
            present = [number for number in np.unique(ids).tolist() if number + 1 in names]
            shapes = [_Shape(number + 1, ids == number, None) for number in present]
        yield _Image(name, height, width, shapes)
    if empty:
        raise InputError(f"{out}: no predictions in it; give the --out of fsanet predict")


def _coco(out: Path, records: Iterable[_Record]) -> dict[str, Any]:
    names = _category_names(out)
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, image in enumerate(_images(out, records, names), 1):
        images.append(
            {"id": number, "file_name": image.name, "height": image.height, "width": image.width}
        )
        for shape in image.shapes:
            rle = encode_masks(torch.from_numpy(shape.mask[None]))[0]
            encoded = {"size": rle["size"], "counts": rle["counts"].encode()}
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": shape.category,
                "segmentation": rle,
                "area": float(shape.mask.sum()),
                "bbox": mask_tools().toBbox(encoded).tolist(),
                "iscrowd": 0,
            }
            if shape.score is not None:
                annotation["score"] = shape.score
            annotations.append(annotation)
    categories = [{"id": i, "name": name} for i, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _tasks(out: Path, records: Iterable[_Record]) -> list[dict[str, Any]]:
    names = _category_names(out)
    tasks = []
    for image in _images(out, records, names):
        results = []
        for number, shape in enumerate(image.shapes):
            result: dict[str, Any] = {
                "id": f"{number:08x}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": image.width,
                "original_height": image.height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": encode_brush(shape.mask),
                    "brushlabels": [names[shape.category]],
                },
            }
            if shape.score is not None:
                result["score"] = shape.score
            results.append(result)
        scores = [shape.score for shape in image.shapes if shape.score is not None]
        prediction: dict[str, Any] = {"model_version": "fsanet", "result": results}
        if scores:
            prediction["score"] = math.fsum(scores) / len(scores)
        address = f"/data/local-files/?d={quote(os.fsencode(image.name))}"
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    return tasks
