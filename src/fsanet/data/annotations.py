"""Annotation files in COCO's instance format: reading, checking, and their shapes as masks.

Masks are encoded and decoded by faster-coco-eval (extra ``coco``), which also computes AP: one
compiled dependency instead of two. torchvision's own `CocoDetection` needs pycocotools as well,
stops at the first bad annotation deep in C code without naming it, and its wrapper for v2
transforms returns a different kind of target for images without annotations.

Source of the format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsanet.errors import InputError

__all__ = [
    "Annotation",
    "CocoFile",
    "decode_masks",
    "encode_masks",
    "mask_tools",
    "read_annotations",
    "scan_annotations",
]

_TOLERANCE = 2.0  # pixels by which a box may exceed the image: annotation tools round
# COCO's own train2017 has two boxes of height 0 among 860001 annotations. A share of empty
# annotations up to this is skipped; a larger one is a fault of the file.
_EMPTY_SHARE = 1e-3


@dataclass(frozen=True)
class Annotation:
    """One instance: box (x0, y0, x1, y1) in pixels, mask as compressed RLE, area in pixels."""

    category: int
    box: tuple[float, float, float, float]
    rle: Mapping[str, Any]
    area: float
    crowd: bool


@dataclass(frozen=True)
class CocoImage:
    """One image: its id, its path relative to the image folder, its size and its annotations."""

    id: int
    file: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoFile:
    """The content of an annotation file.

    Attributes:
        categories: names by category id, in the order of the ids.
        images: in the order of their ids, including those without annotations.
    """

    categories: dict[int, str]
    images: tuple[CocoImage, ...]


class _Empty(ValueError):
    """An annotation without area."""


def mask_tools() -> ModuleType:
    """faster-coco-eval's mask functions.

    Raises:
        InputError: it is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise InputError(
            "instance segmentation needs faster-coco-eval: pip install 'fsanet[coco]'"
        ) from error
    return mask


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks (N, H, W), bool or uint8, as compressed RLE in text that fits into JSON."""
    columns = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())  # (H, W, N)
    encoded = mask_tools().encode(columns)
    return [{"size": [int(s) for s in rle["size"]], "counts": _text(rle)} for rle in encoded]


def decode_masks(rles: list[Any], height: int, width: int) -> Tensor:
    """Decode compressed RLE to masks uint8 (N, H, W)."""
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = mask_tools().decode(rles)  # (H, W, N)
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def read_annotations(path: str | Path) -> CocoFile:
    """Read an annotation file and check everything in it.

    Annotations without area are skipped with a warning if they are at most one in a thousand, as in
    COCO's own train2017.

    Raises:
        InputError: naming the file and the image or annotation: not readable or in another format,
            an unknown category or image, a box outside of its image or without area, a polygon of
            fewer than three points or without a pixel, RLE of another size.
    """
    file, faults, skipped = scan_annotations(path)
    if faults:
        raise InputError(faults[0])
    if skipped:
        total = len(skipped) + sum(len(image.annotations) for image in file.images)
        warnings.warn(
            f"{len(skipped)} of {total} annotations left out, the first: {skipped[0]}",
            stacklevel=2,
        )
    return file


def scan_annotations(path: str | Path) -> tuple[CocoFile, list[str], list[str]]:
    """Read an annotation file, setting unusable annotations aside.

    Returns:
        The content without unusable annotations, a line about each fault, and a line about each
        annotation without area where these are few enough to be skipped.

    Raises:
        InputError: the file is not readable or in another format, its images or categories are
            wrong, or faster-coco-eval is not installed.
    """
    path = Path(path)
    content = _content(path)
    mask_tools()  # one error if it is missing, instead of one per annotation
    try:
        names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        images = {int(i["id"]): i for i in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a category or image lacks its id or name ({error})") from error
    if not names or len(names) < len(content["categories"]):
        raise InputError(f"{path}: no categories, or two with the same id")
    if len(images) < len(content["images"]):
        raise InputError(f"{path}: two images with the same id")
    if min(names) < 1:
        raise InputError(f"{path}: category id {min(names)}; ids start at 1, 0 is the background")
    sizes = {number: _size(entry, path) for number, entry in images.items()}
    found: dict[int, list[Annotation]] = {number: [] for number in images}
    faults: list[str] = []
    empty: list[str] = []
    for index, entry in enumerate(content["annotations"]):
        named = isinstance(entry, dict) and "id" in entry
        where = f"{path}: annotation {entry['id'] if named else f'number {index}'}"
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if image not in images:
            faults.append(f"{where}: image_id {image} is not among the images")
            continue
        if entry.get("category_id") not in names:
            faults.append(
                f"{where}: category_id {entry.get('category_id')} is not among the categories "
                f"({', '.join(map(str, sorted(names)[:10]))})"
            )
            continue
        try:
            found[image].append(_annotation(entry, *sizes[image]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            text = f"{where} (image {images[image]['file_name']}): {text}"
            (empty if isinstance(error, _Empty) else faults).append(text)
    file = CocoFile(
        dict(sorted(names.items())),
        tuple(
            CocoImage(number, str(entry["file_name"]), *sizes[number], tuple(found[number]))
            for number, entry in sorted(images.items())
        ),
    )
    usable = sum(map(len, found.values()))
    if len(empty) > _EMPTY_SHARE * (usable + len(empty)):
        return file, faults + empty, []
    return file, faults, empty


def _content(path: Path) -> dict[str, Any]:
    """The file's JSON, if it has the lists of an instances file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such annotation file; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{path}: no list '{part}'; a COCO instances file has one")
    return content


def _annotation(entry: Mapping[str, Any], height: int, width: int) -> Annotation:
    x, y, w, h = (float(value) for value in entry["bbox"])
    if not all(math.isfinite(value) for value in (x, y, w, h)) or w < 0 or h < 0:
        raise ValueError(f"bbox {entry['bbox']} is no box (x, y, width, height); correct it")
    if w == 0 or h == 0:
        raise _Empty(f"bbox {entry['bbox']} has no area; correct or remove it")
    if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
        raise ValueError(f"bbox {entry['bbox']} reaches out of the {width}x{height} image")
    rle = _rle(entry["segmentation"], height, width)
    pixels = float(mask_tools().area(rle))
    if pixels == 0:
        raise _Empty("the segmentation covers no pixel; correct or remove it")
    return Annotation(
        category=int(entry["category_id"]),
        box=(max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))),
        rle=rle,
        area=float(entry.get("area", pixels)),
        crowd=bool(entry.get("iscrowd", 0)),
    )


def _rle(shape: Any, height: int, width: int) -> Any:
    """Compressed RLE from polygons, uncompressed RLE, or itself."""
    tools = mask_tools()
    if isinstance(shape, dict):
        size, counts = list(shape["size"]), shape["counts"]
        if size != [height, width]:
            raise ValueError(f"RLE of size {size} on an image of (height, width) {height, width}")
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"RLE counts {sum(counts)} pixels of {height * width}")
            return tools.frPyObjects(shape, height, width)
        return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}
    if not isinstance(shape, list) or not shape:
        raise ValueError("segmentation is neither a list of polygons nor RLE")
    for polygon in shape:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "a polygon needs three points or more, as alternating x and y; correct or remove it"
            )
        if not all(math.isfinite(value) for value in polygon):
            raise ValueError("a polygon has a coordinate that is not a number")
    return tools.merge(tools.frPyObjects(shape, height, width))


def _size(image: Mapping[str, Any], path: Path) -> tuple[int, int]:
    try:
        height, width = int(image["height"]), int(image["width"])
        str(image["file_name"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: image {image.get('id')} lacks its file_name, height or width"
        ) from error
    if height < 1 or width < 1:
        raise InputError(f"{path}: image {image['id']} is {width}x{height} pixels")
    return height, width


def _text(rle: Mapping[str, Any]) -> str:
    counts = rle["counts"]
    return counts.decode() if isinstance(counts, bytes) else str(counts)
