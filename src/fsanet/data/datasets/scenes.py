"""Built-in data set: street scenes in which a class hangs on something far away.

Every picture holds two signs, each small and near the left or right end:

* the sun or the moon: under the sun every shop is open, under the moon every shop is closed;
* a traffic light: at green every car moves, at red every car has stopped.

Open and closed shops are drawn by the same code from the same distribution, and so are moving
and stopped cars, at least ``REACH`` of the picture's width away from their sign. So a network
that sees a neighbourhood only is at chance on these four classes, and one that passes a single
bit across the picture gets them right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from fsanet.data.datasets.scene_drawing import (
    CLOSED_SHOP,
    MOVING_CAR,
    OPEN_SHOP,
    STOPPED_CAR,
    render_scene,
)
from fsanet.errors import InputError

CLASSES = ("sky", "ground", "light", "open shop", "closed shop", "moving car", "stopped car")
PALETTE = (
    (134, 171, 217),
    (110, 118, 96),
    (255, 214, 64),
    (240, 128, 48),
    (122, 74, 168),
    (44, 180, 110),
    (214, 48, 74),
)
#: Pairs of class ids that look the same and are told apart by a sign far away.
AMBIGUOUS_PAIRS = ((OPEN_SHOP, CLOSED_SHOP), (MOVING_CAR, STOPPED_CAR))

_SPLITS = ("train", "val", "test")


class ProceduralScenes(Dataset[tuple[Any, Any]]):
    """Street scenes rendered on the fly.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W). It depends on ``(seed, split, index, size)`` alone. No pixel is ignored.

    Args:
        length: number of pictures.
        split: ``"train"``, ``"val"`` or ``"test"``; the splits share no picture.
        size: (H, W) in pixels, at least (48, 128), and at least twice as wide as high. The
            default puts at least 100 pixels between the middle of a sign and what it decides.
        seed: another seed is another data set.
        transform: called as ``transform(image, mask)``.

    Raises:
        InputError: for a length below 1, an unknown split, or a size too small.

    >>> scenes = ProceduralScenes(4, split="val")
    >>> image, mask = scenes[0]
    >>> tuple(image.shape), tuple(mask.shape)
    ((3, 96, 256), (96, 256))
    """

    def __init__(
        self,
        length: int,
        *,
        split: str = "train",
        size: tuple[int, int] = (96, 256),
        seed: int = 0,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        if length < 1:
            raise InputError(f"length={length}: the built-in data set needs at least one picture")
        if split not in _SPLITS:
            raise InputError(
                f"split {split!r} of the built-in data set: choose one of {', '.join(_SPLITS)}"
            )
        height, width = size
        if height < 48 or width < 128 or width < 2 * height:
            raise InputError(
                f"size=({height}, {width}) of the built-in data set: "
                "needs H >= 48, W >= 128 and W >= 2 H, such as (96, 256)"
            )
        if seed < 0:
            raise InputError(f"seed={seed}: must not be negative")
        self.length = length
        self.split = split
        self.size = (int(height), int(width))
        self.seed = seed
        self.transform = transform
        self.classes = CLASSES
        self.palette = PALETTE
        self.num_classes = len(CLASSES)
        self.names = [f"{split}-{index:05d}" for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} of {self.length} pictures")
        key = (self.seed, _SPLITS.index(self.split), index % self.length)
        picture, labels = render_scene(np.random.default_rng(key), self.size)
        image = tv_tensors.Image(torch.from_numpy(picture))
        mask = tv_tensors.Mask(torch.from_numpy(labels).long())
        return (image, mask) if self.transform is None else self.transform(image, mask)
