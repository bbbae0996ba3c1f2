"""Instance segmentation from annotation files in COCO's format, with COCO 2017 as the default."""

# N instances, (H, W) size of the image in pixels

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from fsanet.data.annotations import CocoFile, CocoImage, read_annotations, scan_annotations
from fsanet.data.datasets.base import Layout, Listing, Pair, Problem, Split
from fsanet.data.images import IMAGE_SUFFIXES, read_file
from fsanet.data.shapes import decode_masks, mask_tools
from fsanet.errors import InputError
from fsanet.inputs import file_errors

_COUNTS = {"train": 118287, "val": 5000}
_NUM_CATEGORIES = 80
_LARGEST_LABEL = 10_000


class InstanceDataset(Dataset[tuple[Any, dict[str, Any]]]):
    """The images of a folder with the instances of an annotation file in COCO's format.

    An item is ``(image, target)``: ``tv_tensors.Image`` uint8 (3, H, W), and a dict of

    * "boxes": ``tv_tensors.BoundingBoxes`` float32 (N, 4) as (x0, y0, x1, y1) in pixels;
    * "masks": ``tv_tensors.Mask`` uint8 (N, H, W);
    * "labels": int64 (N,), from 1;
    * "iscrowd": int64 (N,);
    * "area": float32 (N,), as the file has it;
    * "image_id": the image's id in the file.

    An image without annotations has N = 0.

    Args:
        root: folder of the images.
        annotations: the annotation file, or its content from `read_annotations`.
        label_by: "rank" numbers the categories 1, 2, ... in the order of their ids; "id" takes the
            ids themselves, as torchvision's published detectors do for COCO.

    Raises:
        InputError: the annotation file is wrong, or an image is missing or of another size.
    """

    @file_errors()
    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | CocoFile,
        *,
        label_by: Literal["rank", "id"] = "rank",
    ) -> None:
        mask_tools()  # raises before anything is read
        if label_by not in ("rank", "id"):
            raise InputError(f"label_by={label_by!r}: use rank or id")
        self.root = Path(root)
        self.file = (
            annotations if isinstance(annotations, CocoFile) else read_annotations(annotations)
        )
        ids = sorted(self.file.categories)
        if label_by == "id" and ids[-1] > _LARGEST_LABEL:
            raise InputError(
                f"category id {ids[-1]}: label_by=id takes ids up to {_LARGEST_LABEL}; use rank"
            )
        self.category_ids = tuple(ids if label_by == "rank" else range(1, ids[-1] + 1))
        self.classes = tuple(
            self.file.categories.get(number, "N/A") for number in self.category_ids
        )
        self.label_of = {number: i + 1 for i, number in enumerate(self.category_ids)}
        self.names = [image.file for image in self.file.images]
        self.image_paths = [self.root / name for name in self.names]
        home = os.path.abspath(self.root)
        for path in self.image_paths:
            if not Path(os.path.abspath(path)).is_relative_to(home):
                raise InputError(
                    f"{path}: lies outside of {self.root}; the images that annotations list are "
                    "files below the image folder"
                )
            if not path.is_file():
                raise InputError(
                    f"{path}: no such image, but the annotations list it; check the image folder"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        from torchvision import tv_tensors  # here, because checking a data set does without it

        entry, path = self.file.images[index], self.image_paths[index]
        image = read_file(path)
        size = (entry.height, entry.width)
        if tuple(image.shape[-2:]) != size:
            raise InputError(
                f"{path}: {image.shape[2]}x{image.shape[1]} pixels, but the annotations say "
                f"{entry.width}x{entry.height}; correct one of them"
            )
        return tv_tensors.Image(image), annotated_target(entry, self.label_of)


def annotated_target(image: CocoImage, label_of: Mapping[int, int]) -> dict[str, Any]:
    """The target of `InstanceDataset` for an image of an annotation file.

    Args:
        label_of: label of each category.
    """
    from torchvision import tv_tensors

    found, size = image.annotations, (image.height, image.width)
    boxes = torch.tensor([a.box for a in found], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "masks": tv_tensors.Mask(decode_masks([a.rle for a in found], *size)),
        "labels": torch.tensor([label_of[a.category] for a in found], dtype=torch.int64),
        "iscrowd": torch.tensor([int(a.crowd) for a in found], dtype=torch.int64),
        "area": torch.tensor([a.area for a in found], dtype=torch.float32),
        "image_id": image.id,
    }


def check_published(root: Path, file: Path) -> None:
    """Raise `MissingData` if a file of the published names is not there."""
    published = [root / f"annotations/instances_{split}2017.json" for split in _COUNTS]
    if file in published and not file.is_file():
        raise LAYOUT.missing(root, file, ("annotations_trainval2017.zip",))


@file_errors()
def _list_split(root: Path, split: str) -> Listing:
    """List the images of train or val, with what is wrong with their annotations."""
    images, file = root / f"{split}2017", root / f"annotations/instances_{split}2017.json"
    if not images.is_dir():
        raise LAYOUT.missing(root, images, (f"{split}2017.zip",))
    check_published(root, file)
    content, faults, skipped = scan_annotations(file)
    problems = [Problem("annotation", str(file), fault) for fault in faults]
    if len(content.categories) != _NUM_CATEGORIES:
        text = f"{file}: {len(content.categories)} categories, published are {_NUM_CATEGORIES}"
        problems.append(Problem("count", str(file), text))
    existing = {path.name for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    pairs = []
    for image in content.images:
        path = images / image.file
        if image.file in existing:
            pairs.append(Pair(image.file, path, size=(image.height, image.width)))
        else:
            text = f"{path}: no such image, but the annotations list it"
            problems.append(Problem("no image", str(path), text))
    for unlisted in sorted(existing.difference(image.file for image in content.images)):
        text = f"{images / unlisted}: the annotations do not list this image"
        problems.append(Problem("no labels", str(images / unlisted), text))
    return Listing(pairs, problems, [f"left out: {line}" for line in skipped])


def _splits(root: Path, **_: Any) -> list[Split]:
    mask_tools()  # raises before anything is read
    return [
        Split(f"{name}2017", partial(_list_split, root, name), count)
        for name, count in _COUNTS.items()
    ]


LAYOUT = Layout(
    name="coco",
    title="COCO 2017",
    site="https://cocodataset.org/#download",
    archives={
        "train2017.zip": "images; 18 GB",
        "val2017.zip": "images; 1 GB",
        "annotations_trainval2017.zip": "instances; 241 MB",
    },
    tree="""\
    DIR/train2017/*.jpg                                 118287 images
    DIR/val2017/*.jpg                                   5000 images
    DIR/annotations/instances_{train,val}2017.json
    """,
    signs=(*(f"annotations/instances_{split}2017.json" for split in _COUNTS), "train2017"),
    splits=_splits,
)
