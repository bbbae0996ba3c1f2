"""Annotation files of COCO, CVAT and Label Studio: reading, checking, and their shapes as masks.

CVAT's XML and Label Studio's JSON are converted to COCO's instance format first
(`fsanet.data.cvat`, `fsanet.data.label_studio`), in which everything is checked and drawn.
torchvision's own `CocoDetection` needs pycocotools, stops at the first bad annotation deep in C
code without naming it, and its wrapper for v2 transforms returns a different kind of target for
images without annotations.

Source of the format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsanet.data.cvat import cvat_as_coco
from fsanet.data.images import check_pixels
from fsanet.data.label_studio import label_studio_as_coco
from fsanet.data.shapes import check_masks, mask_tools
from fsanet.errors import InputError, is_unicode, printable
from fsanet.inputs import read_json

__all__ = [
    "Annotation",
    "CocoFile",
    "read_annotations",
    "scan_annotations",
]

_TOLERANCE = 2.0  # pixels by which a box may exceed the image: annotation tools round
# COCO's own train2017 has two boxes of height 0 among 860001 annotations. A share of empty
# annotations up to this is skipped; a larger one is a fault of the file.
_EMPTY_SHARE = 1e-3

# What makes sense: COCO's train2017 has 450 MB, 80 categories, and 25 points in a polygon.
_FILE_BYTES = 4_000_000_000
_MOST_CATEGORIES = 10_000
_OUTLINE = 1e7  # length of an annotation's polygons in pixels; drawing them takes 40 bytes each


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

    Category ids that start at 0 are raised by one, because 0 is the background here.

    Returns:
        The content without unusable annotations, a line about each fault, and a line about each
        annotation without area where these are few enough to be skipped.

    Raises:
        InputError: the file is not readable or in another format, its images or categories are
            wrong, or faster-coco-eval is not installed.
    """
    path = Path(path)
    mask_tools()  # one error if it is missing, instead of one per annotation
    content, skipped = _read_content(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise InputError(f"{path}: no list '{part}'; a COCO instances file has one")
    categories = _by_id(content["categories"], f"{path}: category")
    if not 1 <= len(categories) <= _MOST_CATEGORIES:
        raise InputError(f"{path}: {len(categories)} categories; needs 1 to {_MOST_CATEGORIES}")
    if min(categories) < 0:
        raise InputError(f"{path}: category id {min(categories)}; ids start at 1, 0 is background")
    shift = int(0 in categories)  # Label Studio counts from 0 in its COCO export
    categories = {number + shift: entry for number, entry in categories.items()}
    for number, entry in categories.items():
        if not isinstance(entry.get("name"), str) or not is_unicode(entry["name"]):
            raise InputError(f"{path}: category {number} has no name (Unicode text)")
    images = _by_id(content["images"], f"{path}: image")
    for number, entry in images.items():
        _check_image(entry, f"{path}: image {number}")
    found: dict[int, list[Annotation]] = {number: [] for number in images}
    faults: list[str] = []
    empty: list[str] = []
    for index, entry in enumerate(content["annotations"]):
        named = isinstance(entry, dict) and "id" in entry
        where = f"{path}: annotation {_shown(entry['id']) if named else f'number {index}'}"
        image_id = _whole(entry.get("image_id")) if isinstance(entry, dict) else None
        if image_id is None or image_id not in images:
            given = entry.get("image_id") if isinstance(entry, dict) else None
            faults.append(f"{where}: image_id {_shown(given)} is not among the images")
            continue
        image = images[image_id]
        category = _whole(entry.get("category_id"))
        if category is None or category + shift not in categories:
            faults.append(
                f"{where}: category_id {_shown(entry.get('category_id'))} is not among the "
                f"categories ({', '.join(str(n - shift) for n in sorted(categories)[:10])})"
            )
            continue
        try:
            found[image_id].append(
                _annotation(entry, category + shift, image["height"], image["width"])
            )
        except ValueError as error:
            text = f"{where} (image {printable(image['file_name'])}): {error}"
            (empty if isinstance(error, _Empty) else faults).append(text)
    for number, shapes in found.items():
        image = images[number]
        try:
            check_masks(len(shapes), image["height"], image["width"], f"{path}: image {number}")
        except InputError as error:
            faults.append(str(error))
            shapes.clear()
    file = CocoFile(
        {number: entry["name"] for number, entry in sorted(categories.items())},
        tuple(
            CocoImage(
                number, entry["file_name"], entry["height"], entry["width"], tuple(found[number])
            )
            for number, entry in sorted(images.items())
        ),
    )
    usable = sum(map(len, found.values()))
    if len(empty) > _EMPTY_SHARE * (usable + len(empty)):
        return file, faults + empty, skipped
    return file, faults, skipped + empty


def _read_content(path: Path) -> tuple[Any, list[str]]:
    """The content of an annotation file as COCO has it, and a line about what is left out."""
    if path.suffix.lower() == ".xml":
        return cvat_as_coco(path)
    content = read_json(path, "annotation", _FILE_BYTES)
    if isinstance(content, list) and content:
        return label_studio_as_coco(content, path)
    return content, []


def _by_id(entries: list[Any], where: str) -> dict[int, dict[str, Any]]:
    """Entries by their id.

    Raises:
        InputError: one is no object, or has no id of its own.
    """
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        number = _whole(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            raise InputError(f"{where} number {index} has no id (a whole number)")
        if number in found:
            raise InputError(f"{where} id {number} is given twice; ids have to be distinct")
        found[number] = entry
    return found


def _check_image(image: dict[str, Any], where: str) -> None:
    """Raise `InputError` unless an image has a file name and a sensible size."""
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        raise InputError(f"{where} has no file_name (text)")
    height, width = _whole(image.get("height")), _whole(image.get("width"))
    if height is None or width is None:
        raise InputError(f"{where} has no height or width (whole numbers)")
    if height < 1 or width < 1:
        raise InputError(f"{where} is {width}x{height} pixels")
    check_pixels(height, width, where)
    image["height"], image["width"] = height, width


def _annotation(entry: Mapping[str, Any], category: int, height: int, width: int) -> Annotation:
    """Check and convert an annotation.

    Raises:
        ValueError: saying what is wrong with it; `_Empty` if it has no area.
    """
    rle = None
    box = entry.get("bbox")
    if box is None:  # COCO has it, though it follows from the shape
        rle = _rle(entry.get("segmentation"), height, width)
        box = mask_tools().toBbox(rle).tolist()
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"bbox {_shown(box)} is no box (x, y, width, height); correct it")
    x, y, w, h = map(float, box)
    if w < 0 or h < 0:
        raise ValueError(f"bbox {box} is no box (x, y, width, height); correct it")
    if w == 0 or h == 0:
        raise _Empty(f"bbox {box} has no area; correct or remove it")
    if min(x, y) < -_TOLERANCE or x + w > width + _TOLERANCE or y + h > height + _TOLERANCE:
        raise ValueError(f"bbox {box} reaches out of the {width}x{height} image")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {_shown(crowd)}: needs 0 or 1")
    if rle is None:
        rle = _rle(entry.get("segmentation"), height, width)
    pixels = float(mask_tools().area(rle))
    if pixels == 0:
        raise _Empty("the segmentation covers no pixel; correct or remove it")
    area = entry.get("area", pixels)
    if not _is_number(area) or area < 0:
        raise ValueError(f"area {_shown(area)}: needs a number of pixels")
    return Annotation(
        category=category,
        box=(max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))),
        rle=rle,
        area=float(area),
        crowd=bool(crowd),
    )


def _rle(shape: Any, height: int, width: int) -> Any:
    """Compressed RLE from polygons, uncompressed RLE, or itself.

    The compiled code trusts what it is given, so nothing gets there that has not been checked.
    """
    if isinstance(shape, dict):
        size, counts = shape.get("size"), shape.get("counts")
        if size != [height, width]:
            raise ValueError(
                f"RLE of size {_shown(size)} on an image of (height, width) {height, width}"
            )
        runs = _runs(counts, height * width) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(type(n) is int and n >= 0 for n in runs):
            raise ValueError("RLE counts are not a list of run lengths, or text; correct it")
        if sum(runs) != height * width:
            raise ValueError(f"RLE counts {sum(runs)} pixels of {height * width}")
        size = [height, width]  # equal, but of whole numbers, which the compiled code needs
        if isinstance(counts, str):
            return {"size": size, "counts": counts.encode()}
        return mask_tools().frPyObjects({"size": size, "counts": runs}, height, width)
    if not isinstance(shape, list) or not shape:
        raise ValueError("segmentation is neither a list of polygons nor RLE")
    for polygon in shape:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "a polygon needs three points or more, as alternating x and y; correct or remove it"
            )
        if not all(map(_is_number, polygon)):
            raise ValueError("a polygon has a coordinate that is not a number")
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < -width or min(ys) < -height or max(xs) > 2 * width or max(ys) > 2 * height:
            raise ValueError(f"a polygon reaches far out of the {width}x{height} image")
    if sum(map(len, shape)) * (height + width) > _OUTLINE and _outline(shape) > _OUTLINE:
        raise ValueError("the outlines of the polygons are too long")
    return mask_tools().merge(mask_tools().frPyObjects(shape, height, width))


def _outline(polygons: list[list[float]]) -> float:
    """Length of all edges together in pixels."""
    points = (np.array(polygon, dtype=float).reshape(-1, 2) for polygon in polygons)
    return sum(float(np.abs(p - np.roll(p, 1, 0)).max(1).sum()) for p in points)


def _runs(text: str, pixels: int) -> list[int]:
    """Run lengths of compressed RLE.

    Source: the format of COCO's maskApi: numbers in groups of five bits, the lowest first, the
    sixth bit of a character saying that another follows; from the fourth number on, differences
    from the number before the last.

    >>> _runs("52203", 17)
    [5, 2, 2, 2, 5]

    Raises:
        ValueError: the text is no such code.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("RLE text is damaged; correct or remove it")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if not 0 <= runs[-1] <= pixels:
            raise ValueError("RLE text is damaged; correct or remove it")
        value = shift = 0
    if shift:
        raise ValueError("RLE text ends within a number; correct or remove it")
    return runs


def _whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        return None
    return int(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12


def _shown(value: Any) -> str:
    return printable(repr(value))
