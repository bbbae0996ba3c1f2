"""Built-in instance data: overlapping shapes drawn from a seed, with nothing to download.

Each picture has one to six discs, boxes and triangles of any colour on a noisy background. Later
ones cover earlier ones; masks are of what is visible.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fsanet.data.sampling import check_seed
from fsanet.data.shapes import masks_as_target
from fsanet.errors import InputError, check_range, check_ranges

CLASSES = ("disc", "box", "triangle")
CATEGORY_IDS = (1, 2, 3)
_SPLITS = ("train", "val", "test")
_MOST = 6  # shapes per picture
_LEAST_VISIBLE = 40  # pixels of an instance


class InstanceScenes(Dataset[tuple[Any, dict[str, Any]]]):
    """Pictures of shapes rendered on the fly; items are those of
    `fsanet.data.datasets.coco.InstanceDataset`.

    An item depends on ``(seed, split, index, size)`` only.

    Args:
        length: number of pictures.
        split: "train", "val" or "test"; the splits share no picture.
        size: (H, W) in pixels, at least 48 each.
        seed: another seed is another data set.

    Raises:
        InputError: the length is below 1, the split unknown, or the size too small.

    >>> image, target = InstanceScenes(2, size=(64, 96))[0]
    >>> tuple(image.shape), len(target["labels"]) == len(target["masks"])
    ((3, 64, 96), True)
    """

    classes, category_ids = CLASSES, CATEGORY_IDS

    def __init__(
        self,
        length: int,
        *,
        split: str = "train",
        size: tuple[int, int] = (128, 160),
        seed: int = 0,
    ) -> None:
        check_range("length", length, 1, 10**6)
        if split not in _SPLITS:
            raise InputError(f"split {split!r}: choose one of {', '.join(_SPLITS)}")
        check_ranges({"height": (size[0], 48, 8192), "width": (size[1], 48, 8192)})
        check_seed(seed)
        self.length, self.split, self.seed = length, split, seed
        self.size = (int(size[0]), int(size[1]))
        self.names = [f"{split}-{index:05d}.png" for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, _SPLITS.index(self.split), index, *self.size))
        pixels, masks, labels = _draw(rng, *self.size)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        target = masks_as_target(torch.from_numpy(masks), torch.from_numpy(labels), index + 1)
        return tv_tensors.Image(image), target


def _draw(rng: np.random.Generator, height: int, width: int) -> tuple[Any, Any, Any]:
    """Draw a picture uint8 (H, W, 3), its visible masks bool (N, H, W) and labels int64 (N,)."""
    shade = rng.integers(40, 216, 3)
    pixels = shade + rng.normal(0, 12, (height, width, 3))
    masks: list[Any] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, _MOST + 1))):
        label = int(rng.integers(len(CLASSES)))
        shape = _shape(rng, label, height, width)
        kept = [mask & ~shape for mask in masks]
        if shape.sum() < _LEAST_VISIBLE or any(mask.sum() < _LEAST_VISIBLE for mask in kept):
            continue  # too small, or it would hide another one
        masks = [*kept, shape]
        labels.append(label + 1)
        colour = rng.integers(0, 256, 3)
        pixels[shape] = colour + rng.normal(0, 6, (int(shape.sum()), 3))
    if not masks:  # all draws were too small
        return _draw(rng, height, width)
    return (
        pixels.round().clip(0, 255).astype(np.uint8),
        np.stack(masks),
        np.array(labels, dtype=np.int64),
    )


def _shape(rng: np.random.Generator, label: int, height: int, width: int) -> Any:
    """Draw one shape as bool (H, W), perhaps cut by the edge."""
    side = float(rng.uniform(0.12, 0.45)) * min(height, width)
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
    angle = float(rng.uniform(0, 2 * np.pi))
    corners = {0: 48, 1: 4, 2: 3}[label]
    turns = angle + 2 * np.pi * np.arange(corners) / corners
    points = np.stack([x + side * np.cos(turns), y + side * np.sin(turns)], 1)
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([(float(a), float(b)) for a, b in points], fill=1)
    return np.asarray(canvas).copy()
