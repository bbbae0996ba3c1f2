"""Class ids drawn from the shapes of an annotation file of COCO, CVAT or Label Studio."""

# (H, W) size of an image in pixels

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from fsanet.data.annotations import CocoImage, scan_annotations
from fsanet.data.datasets.base import Listing, Pair, Problem
from fsanet.data.datasets.patterns import find_images
from fsanet.data.masks import IGNORE
from fsanet.data.shapes import decode_masks
from fsanet.errors import InputError

__all__ = ["Shapes", "draw_shapes", "list_shapes"]


@dataclass(frozen=True, eq=False)
class Shapes:
    """The shapes of one image, in place of a mask file.

    Attributes:
        file: the annotation file.
        image: its entry there.
        ids: class id of each category.
        outside: id of the pixels outside of all shapes.
    """

    file: Path
    image: CocoImage
    ids: dict[int, int]
    outside: int

    def __str__(self) -> str:
        return f"{self.file}, image {self.image.file}"


def draw_shapes(shapes: Shapes) -> Tensor:
    """Draw shapes in their order, later ones over earlier ones: class ids uint8 (H, W)."""
    size = shapes.image.height, shapes.image.width
    ids = torch.full(size, shapes.outside, dtype=torch.uint8)
    for shape in shapes.image.annotations:  # one at a time: masks of all would be N times as large
        ids[decode_masks([shape.rle], *size)[0].bool()] = shapes.ids[shape.category]
    return ids


def list_shapes(
    root: Path, images: str, file: Path, classes: Sequence[str], ignore_outside: bool
) -> Listing:
    """Pair the images that an annotation file lists with their shapes.

    An image is found by its path below ``root``, or by the end of its path, or by its name; a
    number that Label Studio puts before an uploaded file's name is left out.

    Raises:
        MissingData: no image fits the pattern.
        InputError: the file is not readable or in another format.
    """
    content, faults, skipped = scan_annotations(file)
    problems = [Problem("annotation", str(file), fault) for fault in faults]
    found = {path.relative_to(root).as_posix(): path for path in find_images(root, images).values()}
    by_name: dict[str, list[str]] = {}
    for relative in found:
        by_name.setdefault(PurePosixPath(relative).name, []).append(relative)
    ids = {number: classes.index(name) for number, name in content.categories.items()}
    outside = IGNORE if ignore_outside else 0
    pairs, empty = [], 0
    taken = set[str]()
    for image in content.images:
        matches = _matches(image.file, found, by_name)
        if len(matches) != 1:
            count = f"{len(matches)} images have that name" if matches else "no such image"
            text = f"{file}: image {image.file}: {count} below {root}"
            problems.append(Problem("no image", str(file), text))
            continue
        if matches[0] in taken:
            text = f"{file}: image {image.file}: is listed twice; join its shapes, or remove one"
            problems.append(Problem("annotation", str(file), text))
            continue
        taken.add(matches[0])
        empty += not image.annotations
        path = found[matches[0]]
        name = PurePosixPath(matches[0]).with_suffix("").as_posix()
        shapes = Shapes(file, image, ids, outside)
        pairs.append(Pair(name, path, shapes, (image.height, image.width)))
    if not pairs:
        first = content.images[0].file if content.images else "none"
        raise InputError(
            f"{file}: none of its {len(content.images)} images (the first: {first}) is below {root}"
        )
    notes = [f"left out: {line}" for line in skipped]
    if len(found) > len(taken):
        first = next(name for name in found if name not in taken)
        notes.append(
            f"{file} does not list {len(found) - len(taken)} images, which are left out: {first}"
        )
    if empty:
        notes.append(f"{file} has no shape for {empty} images, which are background as a whole")
    return Listing(pairs, problems, notes)


def _matches(name: str, found: dict[str, Path], by_name: dict[str, list[str]]) -> list[str]:
    """Images that the name in an annotation file can mean."""
    name = PurePosixPath(name.replace("\\", "/")).as_posix()
    if name in found:
        return [name]
    last = PurePosixPath(name).name
    same = by_name.get(last, [])
    ends = [one for one in same if one.endswith(f"/{name}") or name.endswith(f"/{one}")]
    if ends or same:
        return ends or same
    uploaded = re.match(r"[0-9a-f]{8}-(.+)$", last)  # how Label Studio names what is uploaded
    return by_name.get(uploaded[1], []) if uploaded else []
