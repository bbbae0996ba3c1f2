"""Decoded items kept in memory, once for all workers of a process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fsanet.data.labelled import CompactItems, LabelledImages


class DecodedDataset(LabelledImages):
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
        items = CompactItems(dataset)
        for index in range(len(items)):
            image, mask = items[index]
            # (H, W, 3): resizing is faster with the channels of a pixel side by side.
            images.append(image.as_subclass(Tensor).permute(1, 2, 0))
            masks.append(mask.as_subclass(Tensor).to(torch.uint8))
        self.sizes = [tuple(mask.shape) for mask in masks]
        ends = torch.tensor([mask.numel() for mask in masks]).cumsum(0)  # (items,)
        self.starts = [0, *ends.tolist()]
        self.pixels = torch.cat([image.reshape(-1) for image in images])
        self.ids = torch.cat([mask.reshape(-1) for mask in masks])

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies of image uint8 (3, H, W) and ids uint8 (H, W)."""
        start, end = self.starts[index], self.starts[index + 1]
        height, width = self.sizes[index]
        # Copies, so that a transform that writes in place cannot spoil the cache.
        image = self.pixels[3 * start : 3 * end].view(height, width, 3).clone()
        return image.permute(2, 0, 1), self.ids[start:end].view(height, width).clone()
