"""Images with a class id per pixel: what all semantic segmentation data sets share."""

# (H, W) size of an image in pixels

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["CompactItems", "DecodedDataset", "LabelledImages"]


class LabelledImages(Dataset[tuple[Any, Any]]):
    """Base of the semantic segmentation data sets.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W).
    """

    @abstractmethod
    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Load an image, uint8 (3, H, W) in any memory order, and its class ids, uint8 (H, W)."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels, ids = self.load(index)
        return _item(pixels, ids.long())


class CompactItems(Dataset[tuple[Any, Any]]):
    """The items of another data set, with uint8 ids where it can load them as such.

    That is an eighth of the bytes; `fsanet.data.batches.SegmentationData.collate` widens them.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not isinstance(self.dataset, LabelledImages):
            return self.dataset[index]
        return _item(*self.dataset.load(index))


class DecodedDataset(LabelledImages):
    """Loads every item of a data set at construction and serves copies from memory.

    All pixels lie in two flat uint8 tensors, so that forked workers share their pages, and workers
    started in another way get just two shared-memory blocks (which need room in ``/dev/shm``).
    Memory: 4 bytes per pixel, twice that during construction.

    Args:
        dataset: its items are ``(image uint8 (3, H, W), mask (H, W) with ids 0..255)`` of any size,
            without random transforms.
    """

    def __init__(self, dataset: Any) -> None:
        images, masks = [], []
        items = CompactItems(dataset)
        for index in range(len(items)):
            image, mask = items[index]
            # Channels last: resizing is faster that way.
            images.append(image.as_subclass(Tensor).permute(1, 2, 0))  # (H, W, 3)
            masks.append(mask.as_subclass(Tensor).to(torch.uint8))
        self.sizes = [tuple(mask.shape) for mask in masks]
        ends = torch.tensor([mask.numel() for mask in masks]).cumsum(0)  # (items,)
        self.starts = [0, *ends.tolist()]
        self.pixels = torch.cat([image.reshape(-1) for image in images])
        self.ids = torch.cat([mask.reshape(-1) for mask in masks])

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Copy an image, uint8 (3, H, W), and its ids, uint8 (H, W)."""
        start, end = self.starts[index], self.starts[index + 1]
        height, width = self.sizes[index]
        # Copies, because a transform may write in place.
        image = self.pixels[3 * start : 3 * end].view(height, width, 3).clone()
        return image.permute(2, 0, 1), self.ids[start:end].view(height, width).clone()


def _item(pixels: Tensor, ids: Tensor) -> tuple[Any, Any]:
    # Checking and listing a data set do without torchvision, which takes seconds to import.
    from torchvision import tv_tensors

    return tv_tensors.Image(pixels), tv_tensors.Mask(ids)
