"""Instance segmentation data: images with boxes, masks and labels, and Lightning data modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from fsanet.data.batches import OrderedData
from fsanet.data.datasets.coco import CocoFile, decode_masks, mask_tools, read_coco
from fsanet.data.images import read_file
from fsanet.data.instance_transforms import instance_train_transform
from fsanet.errors import InputError

__all__ = ["CocoData", "InstanceData", "InstanceDataset"]

Target = dict[str, Any]


class InstanceDataset(Dataset[tuple[Any, Target]]):
    """Images of a folder with the instances of an annotation file in COCO's format.

    An item is ``(image, target)``: ``tv_tensors.Image`` uint8 (3, H, W), and a dict of "boxes"
    ``tv_tensors.BoundingBoxes`` float32 (N, 4) as (x0, y0, x1, y1) in pixels, "masks"
    ``tv_tensors.Mask`` uint8 (N, H, W), "labels" int64 (N,) from 1, "iscrowd" int64 (N,), "area"
    float32 (N,) as the file has it, and "image_id". An image without annotations has N = 0.

    Args:
        root: folder of the images.
        annotations: the file, or what `read_coco` made of it.
        label_by: "rank" numbers the categories 1, 2, ... in the order of their ids; "id" takes
            the ids themselves, as torchvision's published detectors do for COCO.

    Raises:
        InputError: the file is wrong, or an image is missing or of another size.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | CocoFile,
        *,
        label_by: Literal["rank", "id"] = "rank",
    ) -> None:
        mask_tools()  # says what to install before anything is read
        if label_by not in ("rank", "id"):
            raise InputError(f"label_by={label_by!r}: use rank or id")
        self.root = Path(root)
        self.file = annotations if isinstance(annotations, CocoFile) else read_coco(annotations)
        ids = sorted(self.file.categories)
        self.category_ids = tuple(ids if label_by == "rank" else range(1, ids[-1] + 1))
        self.classes = tuple(
            self.file.categories.get(number, "N/A") for number in self.category_ids
        )
        self.label_of = {number: i + 1 for i, number in enumerate(self.category_ids)}
        self.names = [image.file for image in self.file.images]
        self.image_paths = [self.root / name for name in self.names]
        for name in self.names:
            if not (self.root / name).is_file():
                raise InputError(
                    f"{self.root / name}: no such image, but the annotations list it; "
                    "check the image folder"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        entry = self.file.images[index]
        image = read_file(self.root / entry.file)
        size = (entry.height, entry.width)
        if tuple(image.shape[-2:]) != size:
            raise InputError(
                f"{self.root / entry.file}: {image.shape[2]}x{image.shape[1]} pixels, but the "
                f"annotations say {entry.width}x{entry.height}; correct one of them"
            )
        found = entry.annotations
        boxes = torch.tensor([a.box for a in found], dtype=torch.float32).reshape(-1, 4)
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "masks": tv_tensors.Mask(decode_masks([a.rle for a in found], *size)),
            "labels": torch.tensor([self.label_of[a.category] for a in found], dtype=torch.int64),
            "iscrowd": torch.tensor([int(a.crowd) for a in found], dtype=torch.int64),
            "area": torch.tensor([a.area for a in found], dtype=torch.float32),
            "image_id": entry.id,
        }
        return tv_tensors.Image(image), target


class InstanceData(OrderedData):
    """Base of the data modules: order, augmentation and loaders. Subclasses give the data sets.

    A batch is ``(images, targets)``, two lists of one entry an image: uint8 (3, H, W), and the
    target of `InstanceDataset` as plain tensors. Training batches depend on ``seed``, the epoch
    and the position in it alone; evaluation reads whole images, each once over all processes.

    Args:
        batch_size: images per process and batch.
        steps_per_epoch: optimiser steps that make one Lightning epoch.
        accumulate: batches per optimiser step.
        size, scale, flip, photometric: see `instance_train_transform`.
        eval_batch_size: images per process and batch in evaluation.
        workers: loader processes per training process; 0 loads in the process itself.
        seed: of order and augmentation.

    Raises:
        InputError: for values that make no sense.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    ignore_index = None

    def __init__(
        self,
        *,
        batch_size: int = 2,
        steps_per_epoch: int = 100,
        accumulate: int = 1,
        size: tuple[int, int] | None = (800, 800),
        scale: tuple[float, float] = (0.5, 1.5),
        flip: bool = True,
        photometric: bool = True,
        eval_batch_size: int = 1,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            accumulate=accumulate,
            eval_batch_size=eval_batch_size,
            workers=workers,
            seed=seed,
        )
        self.train_transform = instance_train_transform(
            size, scale=scale, flip=flip, photometric=photometric
        )
        self.eval_transform = v2.Identity()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
        return collate_instances(items)


class CocoData(InstanceData):
    """Data module of annotation files in COCO's format, one file and image folder a split.

    Args:
        root: folder that the other paths start from.
        train_annotations: file of the training split.
        train_images: folder of its images.
        val_annotations: file of the validation split.
        val_images: folder of its images.
        test_annotations: file of the test split; by default that of validation.
        test_images: folder of its images.
        label_by: see `InstanceDataset`.
        **options: see `InstanceData`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        train_annotations: str = "annotations/instances_train2017.json",
        train_images: str = "train2017",
        val_annotations: str = "annotations/instances_val2017.json",
        val_images: str = "val2017",
        test_annotations: str | None = None,
        test_images: str | None = None,
        label_by: Literal["rank", "id"] = "rank",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        self.label_by = label_by
        self.paths = {
            "train": (train_annotations, train_images),
            "val": (val_annotations, val_images),
            "test": (test_annotations or val_annotations, test_images or val_images),
        }
        # Evaluation needs no training file: the classes are those of the first one that is there.
        splits = [s for s in self.paths if (self.root / self.paths[s][0]).is_file()]
        first = self.dataset(splits[0] if splits else "train")
        self.classes, self.category_ids = first.classes, first.category_ids

    def make_dataset(self, stage: str) -> InstanceDataset:
        annotations, images = self.paths[stage]
        path = self.root / annotations
        dataset = InstanceDataset(self.root / images, path, label_by=self.label_by)
        known = getattr(self, "classes", dataset.classes)
        if dataset.classes != known:
            raise InputError(
                f"{path}: categories {', '.join(dataset.classes[:5])} differ from those of the "
                f"other splits, {', '.join(known[:5])}"
            )
        return dataset


def collate_instances(
    items: Sequence[tuple[Tensor, Target]],
) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and targets, as plain tensors; sizes and counts may differ."""
    images = [image.as_subclass(Tensor).contiguous() for image, _ in items]
    targets = [
        {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in target.items()}
        for _, target in items
    ]
    return images, targets
