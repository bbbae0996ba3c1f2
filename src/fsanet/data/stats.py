"""What a data set consists of: sizes of its images, and how much of them each class covers."""

# (H, W) size of an image in pixels

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsanet.data.labelled import LabelledImages
from fsanet.data.sampling import check_workers

__all__ = ["SplitStats", "count_classes", "labelled_item"]


@dataclass
class SplitStats:
    """Counts of one split.

    Attributes:
        sizes: number of images of each (H, W).
        pixels: pixels of each id in 0..255, of all images.
        images_with: images in which each id occurs.
    """

    name: str
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    images_with: list[int] = field(default_factory=lambda: [0] * 256)

    def scored(self, ignore_index: int | None) -> int:
        """Number of pixels that are not labelled ``ignore_index``."""
        return sum(self.pixels) - (0 if ignore_index is None else self.pixels[ignore_index])

    def as_json(self, classes: Sequence[str], ignore_index: int | None) -> dict[str, Any]:
        """Plain values for JSON. Class shares are fractions of the scored pixels."""
        total, scored = sum(self.pixels), self.scored(ignore_index)
        return {
            "split": self.name,
            "images": self.images,
            "sizes": [[w, h, count] for (h, w), count in self.sizes.most_common()],
            "unlabelled": (total - scored) / max(1, total),
            "classes": {
                name: {"share": self.pixels[i] / max(1, scored), "images": self.images_with[i]}
                for i, name in enumerate(classes)
            },
        }


def count_classes(
    name: str,
    dataset: Any,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> SplitStats:
    """Read every item of a data set, and count.

    Args:
        name: of the split.
        dataset: for semantic or instance segmentation.
        workers: threads that read.
        progress: called as ``progress(done, total)``.

    Raises:
        InputError: an item cannot be read, or there are too many workers.
    """
    check_workers(workers)
    stats = SplitStats(name, len(dataset))

    def read(index: int) -> tuple[tuple[int, int], np.ndarray]:
        _, ids = labelled_item(dataset, index)
        return (ids.shape[0], ids.shape[1]), np.bincount(ids.numpy().ravel(), minlength=256)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (size, counts) in enumerate(pool.map(read, range(len(dataset))), 1):
            stats.sizes[size] += 1
            for number in counts.nonzero()[0].tolist():
                stats.pixels[number] += int(counts[number])
                stats.images_with[number] += 1
            if progress is not None:
                progress(done, len(dataset))
    return stats


def labelled_item(dataset: Any, index: int) -> tuple[Tensor, Tensor]:
    """An image uint8 (3, H, W) and its ids uint8 (H, W), of any data set.

    Instances become their labels, later ones over earlier ones, and 0 is the background.
    """
    if isinstance(dataset, LabelledImages):
        return dataset.load(index)
    image, target = dataset[index]
    if isinstance(target, dict):
        ids = torch.zeros(image.shape[-2:], dtype=torch.uint8)
        for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
            ids[mask.as_subclass(Tensor).bool()] = min(label, 254)
        return image.as_subclass(Tensor), ids
    return image.as_subclass(Tensor), target.as_subclass(Tensor).to(torch.uint8)
