"""Decoded items kept in memory, once for all workers of a process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors


class DecodedDataset(Dataset[tuple[Any, Any]]):
    """Reads every item of ``dataset`` at construction and serves copies from memory.

    All pixels lie in two flat uint8 tensors. So forked workers share their pages, and workers
    started in another way get two shared-memory blocks (which need room in ``/dev/shm``),
    however many items there are. Memory: 4 bytes a pixel, twice that while being filled.

    Args:
        dataset: items are ``(image uint8 (3, H, W), mask (H, W) with ids 0..255)``; sizes may
            differ. It must have no random transform.
    """

    def __init__(self, dataset: Any) -> None:
        images, masks = [], []
        for index in range(len(dataset)):
            image, mask = dataset[index]
            images.append(image.as_subclass(Tensor))
            masks.append(mask.as_subclass(Tensor).to(torch.uint8))
        self.sizes = [tuple(mask.shape) for mask in masks]
        ends = torch.tensor([mask.numel() for mask in masks]).cumsum(0)  # (items,)
        self.starts = [0, *ends.tolist()]
        self.pixels = torch.cat([image.reshape(-1) for image in images])
        self.ids = torch.cat([mask.reshape(-1) for mask in masks])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        start, end = self.starts[index], self.starts[index + 1]
        height, width = self.sizes[index]
        # Copies, so that a transform that writes in place cannot spoil the cache.
        image = self.pixels[3 * start : 3 * end].view(3, height, width).clone()
        mask = self.ids[start:end].view(height, width).long()
        return tv_tensors.Image(image), tv_tensors.Mask(mask)
