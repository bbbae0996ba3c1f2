"""Your own instances: shapes of annotation files, or masks that number or colour them."""

# N instances, (H, W) size of an image in pixels

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsanet.data.datasets.base import check_size, usable_pairs
from fsanet.data.datasets.coco import annotated_target
from fsanet.data.datasets.drawn import Shapes
from fsanet.data.datasets.labelled_folder import LabelledFolder
from fsanet.data.images import read_file
from fsanet.data.masks import read_numbers
from fsanet.data.shapes import MASK_BYTES, mask_tools, masks_as_target
from fsanet.errors import InputError
from fsanet.inputs import file_errors

__all__ = ["InstanceFolder"]


class InstanceFolder(Dataset[tuple[Any, dict[str, Any]]]):
    """Images and instances of a `LabelledFolder`; items are those of `InstanceDataset`.

    In a mask, every value (or colour) but 0 is one instance of the only class. Of annotations, each
    shape is one, labelled by its place in the classes of the folder.

    Args:
        folder: with ``masks_of="instances"``, or with annotations and ``outside="ignore"``.
        split: one of `LabelledFolder.splits`.

    Raises:
        InputError: at construction for a missing split or image, a wrong annotation, or an image
            without a mask; at reading for a file that cannot be decoded, and for labels and image
            of different size.
    """

    def __init__(self, folder: LabelledFolder, split: str | None) -> None:
        mask_tools()  # average precision needs it, too
        with file_errors():
            self.pairs = usable_pairs(folder.listing(split))
        self.names = [pair.name for pair in self.pairs]
        self.image_paths = [pair.image for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        from torchvision import tv_tensors  # here, because checking a data set does without it

        pair = self.pairs[index]
        image = read_file(pair.image)
        if isinstance(pair.labels, Shapes):
            entry = pair.labels.image
            size = entry.height, entry.width
            target = annotated_target(entry, {c: i + 1 for c, i in pair.labels.ids.items()})
        else:
            numbers = read_numbers(pair.labels)
            size = numbers.shape[0], numbers.shape[1]
            masks = numbered_masks(numbers, pair.labels)
            labels = torch.ones(len(masks), dtype=torch.int64)
            target = masks_as_target(masks, labels, index + 1)
        check_size(pair.labels, size, pair.image, tuple(image.shape[1:]))
        return tv_tensors.Image(image), target


def numbered_masks(numbers: Tensor, path: Path) -> Tensor:
    """The mask of each number but 0 in an int64 (H, W): bool (N, H, W), by number.

    Raises:
        InputError: naming the file: there are so many that it cannot be a mask of instances.
    """
    found = numbers.unique()
    found = found[found != 0]
    if len(found) * numbers.numel() > MASK_BYTES:
        raise InputError(
            f"{path}: {len(found)} values in one mask are too many instances; give each a number "
            "or a colour of its own, without blending"
        )
    return numbers == found[:, None, None]
