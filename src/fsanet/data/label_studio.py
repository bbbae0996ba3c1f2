"""Annotations of Label Studio: its JSON export, read as COCO's, and predictions written for it.

Sources: https://labelstud.io/guide/export (JSON) and https://labelstud.io/guide/predictions; brush
masks are in the run-length code of https://github.com/thi-ng/umbrella (package rle-pack).
"""

# (H, W) size of an image in pixels

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from fsanet.data.images import IMAGE_SUFFIXES, check_pixels
from fsanet.data.shapes import check_masks, ellipse, encode_masks, run_lengths, turned
from fsanet.errors import InputError, one_line, printable

__all__ = ["decode_brush", "encode_brush", "image_name", "label_studio_as_coco"]

_SHAPES = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels")


def label_studio_as_coco(content: Any, path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Convert a JSON export to the content of a COCO file.

    Of each task the first annotation that was not cancelled is taken; a task without one is left
    out. Polygons, rectangles, ellipses and brushes are read; shapes keep their order. Categories
    are numbered in the order of their names, since an export does not list them.

    Returns:
        The content, and a line about each kind of thing left out.

    Raises:
        InputError: naming the file and the task: in another format.
    """
    found: list[tuple[str, int, int, list[tuple[str, Any]]]] = []
    left_out: dict[str, int] = {}

    def leave_out(what: str) -> None:
        left_out[what] = left_out.get(what, 0) + 1

    for index, task in enumerate(content, 1):
        where = f"{path}: task {index}"
        if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
            raise InputError(
                f"{where} has no list 'annotations'; export from Label Studio as JSON, not as "
                "JSON-MIN"
            )
        done = [one for one in task["annotations"] if isinstance(one, dict)]
        done = [one for one in done if not one.get("was_cancelled")]
        if not done:
            leave_out("tasks without an annotation")
            continue
        try:
            name = _image_of(task)
            shapes, size = list[tuple[str, Any]](), None
            for result in done[0].get("result") or []:
                kind = result.get("type")
                if kind not in _SHAPES:
                    leave_out(f"results of type {printable(str(kind))}")
                    continue
                size = int(result["original_height"]), int(result["original_width"])
                check_pixels(*size, where)
                check_masks(len(shapes) + 1, *size, where)
                labels = result["value"][kind]
                if not isinstance(labels, list) or not labels or not isinstance(labels[0], str):
                    raise ValueError("a shape without a label")
                shapes.append((labels[0], _segmentation(kind, result["value"], *size)))
        except InputError:
            raise
        except Exception as error:  # whatever it is, the file has caused it
            line = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{where}: not as Label Studio writes it ({line})") from error
        if size is None:
            leave_out("tasks whose annotation has no shape")
            continue
        found.append((name, *size, shapes))
    names = sorted({label for *_, shapes in found for label, _ in shapes})
    number = {name: i for i, name in enumerate(names, 1)}
    annotations = [
        {"image_id": image, "category_id": number[label], "segmentation": segmentation}
        for image, (*_, shapes) in enumerate(found, 1)
        for label, segmentation in shapes
    ]
    return {
        "images": [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, (name, height, width, _) in enumerate(found, 1)
        ],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }, [f"{path}: {count} {what}" for what, count in left_out.items()]


def _image_of(task: dict[str, Any]) -> str:
    """File name of a task's image, from the address that Label Studio gives it."""
    data = task["data"]
    values = [data.get("image"), *data.values()]
    for value in values:
        if isinstance(value, str):
            name = image_name(value)
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                return name
    raise ValueError("its data name no image")


def image_name(address: str) -> str:
    """Path of an image from its address: of local files below their root, else the last part.

    >>> image_name("/data/local-files/?d=town/a%20b.jpg"), image_name("s3://bucket/town/c.jpg")
    ('town/a b.jpg', 'c.jpg')
    """
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    if local:
        return local[0].lstrip("/")
    if not parts.scheme and not address.startswith("/"):
        return address
    return unquote(parts.path).rpartition("/")[2]


def _segmentation(kind: str, value: dict[str, Any], height: int, width: int) -> Any:
    """COCO's polygons or RLE of a shape, whose numbers are percent of the image."""
    if kind == "brushlabels":
        if value.get("format") != "rle":
            raise ValueError(f"brush of format {value.get('format')!r}")
        mask = decode_brush(value["rle"], height, width)
        return encode_masks(torch.from_numpy(mask[None]))[0]
    across, down = width / 100, height / 100
    if kind == "polygonlabels":
        return [[float(n) for x, y in value["points"] for n in (x * across, y * down)]]
    x, y = value["x"] * across, value["y"] * down
    degrees = value.get("rotation") or 0
    if kind == "rectanglelabels":
        w, h = value["width"] * across, value["height"] * down
        return [turned([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], (x, y), degrees)]
    outline = ellipse((x, y), value["radiusX"] * across, value["radiusY"] * down)
    return [turned(outline, (x, y), degrees)]


# A brush is the RGBA values of the image, one channel after the other for each pixel: 32 bits for
# their number, 5 for the bits of a value less one, four times 4 for the bits of lengths less one.
# Then pieces: 1 bit (repeated value or not), 2 for which of the four, the length less one, and the
# value or the values.
_HEADER = 32 + 5 + 16
_LENGTH_BITS = (4, 8, 12, 16)


def decode_brush(code: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """The mask of a brush, bool (H, W): where its opacity is not 0.

    Raises:
        ValueError: it is no such code, or of another size.
    """
    bits = np.unpackbits(np.array(code, dtype=np.uint8))
    text = (bits + 48).tobytes().decode()
    count = int(text[:32], 2)
    if count != 4 * height * width:
        raise ValueError(f"brush of {count} values on an image of {width}x{height} pixels")
    word = int(text[32:37], 2) + 1
    sizes = [int(text[at : at + 4], 2) + 1 for at in range(37, _HEADER, 4)]
    values = np.zeros(count, np.uint8)
    position, at = 0, _HEADER
    while position < count:
        if at + 3 > len(text):
            raise ValueError(f"brush ends after {position} of {count} values")
        repeated = text[at] == "1"
        size = sizes[int(text[at + 1 : at + 3], 2)]
        at += 3
        length = int(text[at : at + size], 2) + 1
        at += size
        stop = position + length
        if stop > count:
            raise ValueError(f"brush of more than {count} values")
        if repeated:
            values[position:stop] = int(text[at : at + word], 2) != 0
            at += word
        else:
            for index in range(position, stop):
                values[index] = int(text[at : at + word], 2) != 0
                at += word
        position = stop
    return values.reshape(height, width, 4)[..., 3] != 0


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """The code of a mask (H, W) for `decode_brush` and Label Studio, as bytes 0..255."""
    parts = [f"{4 * mask.size:032b}", f"{7:05b}", *(f"{bits - 1:04b}" for bits in _LENGTH_BITS)]
    value = False
    for run in run_lengths(mask.ravel()):
        left = 4 * run
        while left:
            length = min(left, 2 ** _LENGTH_BITS[-1])
            which = next(i for i, bits in enumerate(_LENGTH_BITS) if length <= 2**bits)
            length_bits = _LENGTH_BITS[which]
            parts.append(f"1{which:02b}{length - 1:0{length_bits}b}{255 * value:08b}")
            left -= length
        value = not value
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - 48).tolist()
