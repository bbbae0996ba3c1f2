"""Images with a class id a pixel: what the data sets of files have in common."""

# H, W size of an image in pixels

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

__all__ = ["CompactItems", "LabelledImages"]


class LabelledImages(Dataset[tuple[Any, Any]]):
    """Base of data sets that read images and class ids.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W), and ``tv_tensors.Mask``
    int64 (H, W).
    """

    transform: Callable[..., Any] | None = None

    @abstractmethod
    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 (3, H, W), in any order in memory, and class ids uint8 (H, W)."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels, ids = self.load(index)
        image, mask = tv_tensors.Image(pixels), tv_tensors.Mask(ids.long())
        return (image, mask) if self.transform is None else self.transform(image, mask)


class CompactItems(Dataset[tuple[Any, Any]]):
    """Items of another data set, with uint8 ids where it can give them.

    An eighth of the bytes until a batch is made: `fsanet.data.module.collate` widens them.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        dataset = self.dataset
        if not isinstance(dataset, LabelledImages) or dataset.transform is not None:
            return dataset[index]
        pixels, ids = dataset.load(index)
        return tv_tensors.Image(pixels), tv_tensors.Mask(ids)
