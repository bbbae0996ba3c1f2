"""Annotations of CVAT: its XML format "CVAT for images 1.1", read as COCO's and written.

Source of the format: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

# (H, W) size of an image, (h, w) of the box around a shape, in pixels

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from fsanet.data.images import check_pixels
from fsanet.data.shapes import check_masks, ellipse, encode_box, run_lengths, turned
from fsanet.errors import InputError, escaped, one_line, printable
from fsanet.inputs import read_text

__all__ = ["CvatImage", "cvat_as_coco", "cvat_document"]

_FILE_BYTES = 4_000_000_000
_NO_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def cvat_as_coco(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Read a CVAT file as the content of a COCO file; shapes of an image by their z_order.

    Polygons, boxes, ellipses and masks are read.

    Returns:
        The content, and a line about each kind of shape that is left out because it has no area.

    Raises:
        InputError: the file is not readable, or in another format.
    """
    text = read_text(path, "annotation", _FILE_BYTES)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: has a document type, which CVAT's files have not; not read")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: annotation file is not XML ({one_line(error)})") from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise InputError(
            f"{path}: not CVAT's annotations of images; export the task as 'CVAT for images 1.1'"
        )
    labels = [one.findtext("name") or "" for one in root.iterfind("meta//labels/label")]
    used = {shape.get("label", "") for image in root.iterfind("image") for shape in image}
    names = [*dict.fromkeys([*labels, *sorted(used - {*labels})])]
    number = {name: i for i, name in enumerate(names, 1)}
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    left_out: dict[str, int] = {}
    for index, image in enumerate(root.iterfind("image"), 1):
        where = f"{path}: image {printable(image.get('name', str(index)))}"
        try:
            height, width = int(image.get("height", "")), int(image.get("width", ""))
        except ValueError as error:
            raise InputError(f"{where} has no height or width (whole numbers)") from error
        check_pixels(height, width, where)
        check_masks(len(image.findall("mask")), height, width, where)
        name = image.get("name")
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        # A stable sort: shapes of one z_order stay in the order of the file.
        for shape in sorted(image, key=_z_order):
            if shape.tag in _NO_AREA:
                left_out[shape.tag] = left_out.get(shape.tag, 0) + 1
                continue
            try:
                segmentation = _segmentation(shape, height, width)
            except (ValueError, OverflowError) as error:
                raise InputError(f"{where}: {shape.tag}: {one_line(error)}") from error
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": number[shape.get("label", "")],
                    "segmentation": segmentation,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }
    return content, [f"{path}: {count} x {tag}, without area" for tag, count in left_out.items()]


def _z_order(shape: ElementTree.Element) -> int:
    try:
        return int(shape.get("z_order", "0"))
    except ValueError:
        return 0


def _segmentation(shape: ElementTree.Element, height: int, width: int) -> Any:
    """COCO's polygons or RLE of a shape.

    Raises:
        ValueError: a value is missing or wrong.
    """

    def number(name: str, default: str = "") -> float:
        value = float(shape.get(name, default))
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}")
        return value

    if shape.tag == "polygon":
        points = [point.split(",") for point in shape.get("points", "").split(";")]
        return [[float(value) for x, y in points for value in (x, y)]]
    if shape.tag == "box":
        x0, y0, x1, y1 = (number(name) for name in ("xtl", "ytl", "xbr", "ybr"))
        centre = (x0 + x1) / 2, (y0 + y1) / 2
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        return [turned(corners, centre, number("rotation", "0"))]
    if shape.tag == "ellipse":
        centre = number("cx"), number("cy")
        outline = ellipse(centre, number("rx"), number("ry"))
        return [turned(outline, centre, number("rotation", "0"))]
    if shape.tag == "mask":
        left, top, w, h = (int(number(name)) for name in ("left", "top", "width", "height"))
        if not (0 <= left < left + w <= width and 0 <= top < top + h <= height):
            raise ValueError(
                f"box {left}, {top}, {w}, {h} reaches out of the {width}x{height} image"
            )
        runs = [int(run) for run in shape.get("rle", "").split(",")]
        if min(runs) < 0 or sum(runs) != w * h:  # in Python's integers, which never wrap
            raise ValueError(f"rle counts {sum(runs)} pixels of {w * h}, or has a run below 0")
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
        return encode_box(inside, top, left, height, width)
    raise ValueError("is no shape that is read (polygon, box, ellipse, mask)")


class CvatImage(NamedTuple):
    """An image with masks, to be written.

    Attributes:
        masks: name of the class and bool (H, W) of each.
    """

    name: str
    height: int
    width: int
    masks: Sequence[tuple[str, NDArray[np.bool_]]]


def cvat_document(images: Sequence[CvatImage], classes: Sequence[str]) -> bytes:
    """The XML file of images and their masks, for CVAT's "Upload annotations"."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    # Of a task, as CVAT exports one: datumaro refuses a file without its "task" or "project".
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(task, "labels")
    for name in classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = _in_xml(name)
    for index, image in enumerate(images):
        size = {"width": str(image.width), "height": str(image.height)}
        about = {"id": str(index), "name": _in_xml(image.name), **size}
        node = ElementTree.SubElement(root, "image", about)
        for name, mask in image.masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            if not len(rows):
                continue
            top, left = int(rows[0]), int(columns[0])
            inside = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]  # (h, w)
            values = {
                "label": _in_xml(name),
                "source": "auto",
                "occluded": "0",
                "rle": ", ".join(map(str, run_lengths(inside.ravel()))),
                "left": str(left),
                "top": str(top),
                "width": str(inside.shape[1]),
                "height": str(inside.shape[0]),
                "z_order": "0",
            }
            ElementTree.SubElement(node, "mask", values)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _in_xml(name: str) -> str:
    """A name with what XML cannot hold escaped: control characters, and bytes that are no UTF-8."""
    return _NOT_IN_XML.sub(lambda found: escaped(found[0]), name)
