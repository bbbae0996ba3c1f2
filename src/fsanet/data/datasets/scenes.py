"""Built-in data set: street scenes in which a class depends on something far away.

Every scene has two signs, each small and near the left or right end:

* the sun or the moon: under the sun every shop is open, under the moon every shop is closed;
* a traffic light: when it is green every car moves, when it is red every car has stopped.

Open and closed shops are drawn by the same code from the same distribution, and so are moving and
stopped cars, at least ``REACH`` of the scene's width away from their sign. So a network that sees
only a neighbourhood is at chance on these four classes, and one that passes a single bit across the
scene gets them right.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fsanet.data.datasets.scene_drawing import (
    CLOSED_SHOP,
    MOVING_CAR,
    OPEN_SHOP,
    STOPPED_CAR,
    render_scene,
)
from fsanet.data.labelled import LabelledImages
from fsanet.data.sampling import check_seed
from fsanet.errors import InputError, check_range

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
#: Pairs of class ids that look the same; only a distant sign distinguishes them.
AMBIGUOUS_PAIRS = ((OPEN_SHOP, CLOSED_SHOP), (MOVING_CAR, STOPPED_CAR))

_SPLITS = ("train", "val", "test")


class ProceduralScenes(LabelledImages):
    """Street scenes rendered on the fly.

    An item is ``(image, mask)``: ``tv_tensors.Image`` uint8 (3, H, W) and ``tv_tensors.Mask``
    int64 (H, W). It depends on ``(seed, split, index, size)`` only. No pixel is ignored.

    Args:
        length: number of scenes.
        split: ``"train"``, ``"val"`` or ``"test"``; the splits share no scene.
        size: (H, W) in pixels, at least (48, 128), and at least twice as wide as high. The default
            puts at least 100 pixels between the middle of a sign and what it decides.
        seed: another seed is another data set.

    Raises:
        InputError: the length is below 1, the split unknown, or the size too small.

    >>> scenes = ProceduralScenes(4, split="val")
    >>> image, mask = scenes[0]
    >>> tuple(image.shape), tuple(mask.shape)
    ((3, 96, 256), (96, 256))
    """

    classes, palette, num_classes = CLASSES, PALETTE, len(CLASSES)

    def __init__(
        self,
        length: int,
        *,
        split: str = "train",
        size: tuple[int, int] = (96, 256),
        seed: int = 0,
    ) -> None:
        check_range("length", length, 1, 10**6)
        if split not in _SPLITS:
            raise InputError(
                f"split {split!r} of the built-in data set: choose one of {', '.join(_SPLITS)}"
            )
        height, width = size
        if not (48 <= height <= width / 2 and 128 <= width <= 16384):
            raise InputError(
                f"size=({height}, {width}) of the built-in data set: "
                "needs H >= 48, 128 <= W <= 16384 and W >= 2 H, such as (96, 256)"
            )
        check_seed(seed)
        self.length = length
        self.split = split
        self.size = (int(height), int(width))
        self.seed = seed
        self.names = [f"{split}-{index:05d}" for index in range(length)]

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """Render a scene: image uint8 (3, H, W), class ids uint8 (H, W)."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} of {self.length} scenes")
        key = (self.seed, _SPLITS.index(self.split), index % self.length)
        picture, labels = render_scene(np.random.default_rng(key), self.size)
        return torch.from_numpy(picture), torch.from_numpy(labels)
